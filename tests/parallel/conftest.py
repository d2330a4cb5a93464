from pathlib import Path

import pytest

from tests.parallel.ranks import Ranks, send_by_value

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    """Tests on the same ranks come together, so that ranks start once."""
    ordered = iter(sorted((i for i in items if i.path.parent == HERE), key=_ranks_of))
    items[:] = [next(ordered) if item.path.parent == HERE else item for item in items]


def _ranks_of(item):
    """How many ranks a test needs, on how many hosts: what its parameters say, or 2 and 1."""
    given = item.callspec.params if hasattr(item, "callspec") else {}
    marker = item.get_closest_marker("on_hosts")
    ranks, hosts = marker.args if marker else (2, 1)
    return given.get("ranks", ranks), given.get("hosts", hosts)


# Jobs that wait for the next body, by number of ranks and of hosts.
_pool = {}


def pytest_runtest_teardown(nextitem):
    """Idle ranks talk to each other every millisecond: none beside other tests."""
    if nextitem is None or nextitem.path.parent != HERE:
        while _pool:
            _pool.popitem()[1].stop()


@pytest.fixture
def on_ranks(request):
    """`on_ranks(n, body, *args, hosts=1)`: what `body` returned on each of `n` ranks."""
    send_by_value(request.module.__name__)

    def run(size, body, *args, hosts=1, **options):
        wanted = (size, hosts)
        for other in [job for job, r in _pool.items() if job != wanted or not r.alive]:
            _pool.pop(other).stop()
        if wanted not in _pool:
            _pool[wanted] = Ranks(size, hosts=hosts)
        return _pool[wanted].run(body, *args, **options)

    return run


@pytest.fixture
def on_new_ranks(request):
    """`on_new_ranks(n, body, *args)`: the same, on ranks that have run nothing before."""
    send_by_value(request.module.__name__)

    def run(size, body, *args):
        job = Ranks(size)
        try:
            return job.run(body, *args)
        finally:
            job.stop()

    return run
