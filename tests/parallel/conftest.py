import sys
from pathlib import Path

import cloudpickle
import pytest

from tests.parallel.ranks import Ranks

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    """Tests on the same number of ranks come together, so that ranks start once."""
    here = [i for i in items if i.path.parent == HERE]
    sizes = {i: getattr(i, "callspec", None) for i in here}
    sizes = {i: spec.params.get("ranks", 2) if spec else 2 for i, spec in sizes.items()}
    ordered = iter(sorted(here, key=sizes.get))
    items[:] = [next(ordered) if item in sizes else item for item in items]


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
    # The ranks cannot import test modules: send their functions by value.
    cloudpickle.register_pickle_by_value(sys.modules[request.module.__name__])

    def run(size, body, *args, hosts=1, **options):
        wanted = (size, hosts)
        for other in [job for job, r in _pool.items() if job != wanted or not r.alive]:
            _pool.pop(other).stop()
        if wanted not in _pool:
            _pool[wanted] = Ranks(size, hosts=hosts)
        return _pool[wanted].run(body, *args, **options)

    return run
