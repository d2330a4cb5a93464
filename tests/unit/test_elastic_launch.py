"""Elastic jobs as the launcher sees them: labels, waits, and new starts."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gsnr_tf.launch import Job, supervise
from gsnr_tf.launch.output import Output
from gsnr_tf.resilience.commits_on_disk import COMMIT

HOROVODRUN = Path(supervise.__file__).with_name("horovodrun.py")


def taken(*lines, **options):
    """An `Output` that has taken these lines, and what it showed."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        output = Output(2, **options)
        for line in lines:
            output.take(f"{line}\n")
    return output, shown.getvalue()


def failed(rank, code=137):
    report = {"code": code, "time": 1.0, "ended": False, "error": None}
    return f"[{rank}]<stderr>:{supervise.REPORT}{json.dumps(report)}"


def test_what_ranks_say_of_commits_is_kept_and_not_shown():
    lines = [f"[0]<stderr>:{COMMIT}/saved/commit-{number}" for number in (5, 10)]
    output, shown = taken(*lines)
    assert output.commit == "/saved/commit-10" and shown == ""
    # It is no commit that a program prints about.
    assert taken(f"[0]<stdout>:{COMMIT}x")[0].commit is None


def test_a_process_that_fails_is_told_at_once_where_others_go_on():
    _, shown = taken(failed(1), elastic=True)
    assert shown.startswith("1 | This process has failed: ended by signal 9")
    assert taken(failed(1))[1] == taken(failed(1, code=0), elastic=True)[1] == ""


def starts(monkeypatch, *ends, **options):
    """Runs a job whose starts end so: `(code, lines)`; its exit code, and how often."""
    made = []

    class Ended:
        received = None

        def __init__(self, command, grace, variables, tell):
            made.append(command)
            self.code, self._lines = ends[int(variables["GSNR_TF_RESTARTS"])]

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def lines(self):
            return [f"{line}\n" for line in self._lines]

        def wait(self):
            return self.code

    monkeypatch.setattr("gsnr_tf.launch.job._Running", Ended)
    monkeypatch.setattr(Job, "check", lambda self: None)
    own = Job(command=[__file__], ranks=2, **options)
    return own.run(), made


COMMITTED = f"[0]<stderr>:{COMMIT}/saved/commit-5"
ELASTIC = {"discovery": "hosts.sh", "min_ranks": 1, "max_ranks": 3}


def test_an_elastic_job_starts_again_as_long_as_it_commits(monkeypatch, capsys):
    ends = [(1, [COMMITTED, failed(0)]), (1, [COMMITTED, failed(1)]), (1, [failed(0)])]
    code, commands = starts(monkeypatch, *ends, **ELASTIC)
    assert code == 137 and len(commands) == 3
    said = capsys.readouterr().err
    assert said.count("Starts again, from the last commit on disk, /saved/commit-5.") == 2
    assert "since this start there was no commit on disk" in said
    # It need not wait for as many hosts as before.
    ranks = [command[command.index("-np") + 1] for command in commands]
    assert ranks == ["2", "1", "1"]


@pytest.mark.parametrize(
    ("lines", "options"),
    [
        ([failed(0)], {}),
        ([COMMITTED, failed(0)], {"reset_limit": 3}),
        ([COMMITTED, "Waited in vain for hosts, for 600 s.", failed(0)], {}),
    ],
)
def test_an_elastic_job_ends_where_it_cannot_go_on(monkeypatch, lines, options):
    code, commands = starts(monkeypatch, (1, lines), **ELASTIC, **options)
    assert code == 137 and len(commands) == 1


def test_restarts_that_were_asked_for_are_counted_apart(monkeypatch, capsys):
    ends = [(1, [failed(0)]), (1, [COMMITTED, failed(0)]), (1, [failed(0)]), (0, [])]
    code, commands = starts(monkeypatch, *ends, max_restarts=2, **ELASTIC)
    assert code == 0 and len(commands) == 4
    said = capsys.readouterr().err
    assert "Starts again, 1 of 2." in said and "Starts again, 2 of 2." in said


# What horovodrun.py replaces of Horovod stays replaced, so in a process of its own.
PROGRAM = """
import importlib.util, sys, threading
from types import SimpleNamespace

spec = importlib.util.spec_from_file_location("of_gsnr_tf", sys.argv[1])
launcher = importlib.util.module_from_spec(spec)
spec.loader.exec_module(launcher)

from horovod.runner import gloo_run
from horovod.runner.elastic.discovery import FixedHosts
from horovod.runner.util.threads import in_thread

def run(command, slot, events):
    sys.stdout.write(f"runs as {slot.rank}\\n")
    return events

gloo_run._exec_command_fn = lambda settings: run
launcher.replace_elastic()
"""

LABELS = """
execute = gloo_run._exec_command_fn(None)
for host, rank in (("a", 0), ("b", 1), ("c", 1), ("a", 0), ("d", 2)):
    slot = SimpleNamespace(rank=rank, hostname=host, local_rank=0)
    (end,) = execute("", slot, None)
    assert slot.rank == rank and not end.is_set()
"""

# Both hosts are needed. The rank on `a` fails, and that on `b` waits; `a` is out of favour
# for a second and comes back. When the first process on `a` has its end noted, only then,
# the second has its place.
RETURNS = """
class Rendezvous:
    def init(self, slots): pass
    def stop(self): pass

driver = gloo_run.ElasticDriver(
    Rendezvous(), FixedHosts({"a": 1, "b": 1}), 2, 2, timeout=60, cooldown_range=(1, 2)
)
starts, ends = threading.Semaphore(0), {"a": [], "b": []}

def work(slot, events):
    sys.stdout.write(f"starts on {slot.hostname}\\n")  # At once: two threads write.
    end = threading.Event()
    ends[slot.hostname].append(end)
    starts.release()
    end.wait()
    return 1, 0

driver.start(2, work)
for _ in range(2):
    starts.acquire()
waits = in_thread(driver.record_ready, ("b", 0))
ends["a"][0].set()
assert starts.acquire(timeout=60), "no new process on the host that came back"
waits.join()
assert not driver.finished()
driver.stop()
for end in ends["a"] + ends["b"]:
    end.set()
"""

# One rank waits for the other, which does not come: it is ended.
LATE = """
class Driver(gloo_run.ElasticDriver):
    def _discover_hosts(self): pass

slots = [SimpleNamespace(hostname=h, local_rank=0, rank=r) for r, h in enumerate("ab")]
execute = gloo_run._exec_command_fn(None)
events = [execute("", slot, None)[0] for slot in slots]
driver = Driver(None, FixedHosts({}), 2, 2, timeout=1)
driver._host_assignments = {"a": slots[:1], "b": slots[1:]}
driver._worker_registry.reset(2)
in_thread(driver.record_ready, ("a", 0), daemon=True)
assert events[1].wait(60) and not events[0].is_set()
"""

VAIN = """
driver = gloo_run.ElasticDriver(None, FixedHosts({"a": 1}), 2, 2, timeout=7)
try:
    driver.wait_for_available_slots(2)
except Exception as error:
    print(type(error).__name__, flush=True)
"""


def printed(program):
    """Lines that a program prints after `PROGRAM`."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + program, str(HOROVODRUN)],
        capture_output=True,
        text=True,
        timeout=300,
        # An elastic job has no need of TensorFlow here.
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_no_two_processes_have_one_label():
    assert printed(LABELS) == [
        "runs as 0",
        "runs as 1",
        "A new process on c begins as rank 1: 2 |",
        "runs as 2",
        "A new process on a begins as rank 0: 3 |",
        "runs as 3",
        "A new process on d begins as rank 2: 4 |",
        "runs as 4",
    ]


def test_a_host_that_fails_and_comes_back_gets_a_new_process():
    lines = printed(RETURNS)
    assert sorted(lines[:2]) == ["starts on a", "starts on b"]
    assert lines[2:] == ["starts on a"]


def test_a_rank_that_does_not_come_is_ended():
    assert printed(LATE)[-1] == (
        "1 | does not meet the others, who have waited for 1 s "
        "(HOROVOD_ELASTIC_TIMEOUT). It is ended."
    )


def test_a_wait_for_hosts_is_told_and_ends():
    assert printed(VAIN) == [
        "Waiting for hosts: there is room for 1 ranks of at least 2. The job ends if that "
        "lasts for 7 s (HOROVOD_ELASTIC_TIMEOUT).",
        "Waited in vain for hosts, for 7 s.",
        "TimeoutException",
    ]
