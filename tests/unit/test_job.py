"""Jobs that need no Horovod, jobs beside this process, and the settings that all have."""

import json
import sys
import threading

import pytest

from gsnr_tf.engine import tune
from gsnr_tf.launch import Background, CannotStart, Job

SECONDS = 120

SHOW = """
import os, sys
print("to standard output")
print("to standard error", file=sys.stderr)
sys.stdout.write("no line feed")
"""
FAIL = "raise ValueError('of its own')"
# Waits for what never comes.
WAIT = """
import sys, threading
print("ready", flush=True)
threading.Event().wait()
"""
SETTINGS = """
import json, os, sys
names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
rank = os.environ.get("HOROVOD_RANK", "0")
with open(f"{sys.argv[1]}-{rank}", "w") as file:
    json.dump({name: os.environ.get(name) for name in names}, file)
"""


@pytest.fixture
def script(tmp_path):
    def write(text):
        path = tmp_path / "script.py"
        path.write_text(text)
        return str(path)

    return write


@pytest.fixture
def without_horovod(monkeypatch):
    for name in ("horovod", "psutil"):
        monkeypatch.setitem(sys.modules, name, None)
    find = job_module().importlib.util.find_spec
    monkeypatch.setattr(
        job_module().importlib.util,
        "find_spec",
        lambda name, *more: None if name == "horovod" else find(name, *more),
    )


def job_module():
    from gsnr_tf.launch import job

    return job


def test_one_rank_here_needs_no_horovod(script, without_horovod, tmp_path, capfd):
    path = script(SHOW)
    assert Job(command=[path], ranks=1, folder=tmp_path / "saved").run() == 0
    shown = capfd.readouterr()
    assert shown.out.splitlines() == ["0 | to standard output", "0 | no line feed"]
    assert shown.err.splitlines() == ["0 | to standard error"]
    saved = (tmp_path / "saved" / "rank-0.log").read_text()
    assert sorted(saved.splitlines()) == sorted(
        ["to standard output", "to standard error", "no line feed"]
    )
    with pytest.raises(CannotStart, match="no Horovod in .* which 2 ranks need"):
        Job(command=[path], ranks=2).run()


def test_a_quiet_job_says_why_it_failed_to_who_started_it(script, tmp_path, capfd):
    job = Background(Job(command=[script(FAIL)], ranks=1, quiet=True, folder=tmp_path / "saved"))
    assert job.wait(SECONDS) == 1
    assert not job.alive
    assert job.job.failure.startswith("Rank 0 failed: exit code 1.")
    assert job.job.failure.endswith("ValueError: of its own\n")
    assert capfd.readouterr() == ("", "")


def test_a_job_beside_this_process_is_ended(script, tmp_path):
    folder = tmp_path / "saved"
    job = Background(Job(command=[script(WAIT)], ranks=1, quiet=True, folder=folder, grace=5))
    saved, waiting = folder / "rank-0.log", threading.Event()
    for _ in range(10 * SECONDS):
        if saved.exists() and "ready" in saved.read_text():
            break
        waiting.wait(0.1)
    assert job.alive and job.wait(0.1) is None
    job.stop()
    assert job.wait(SECONDS) == 128 + 15 and not job.alive


def test_a_job_that_cannot_start_says_so_where_it_is_waited_for(tmp_path):
    job = Background(Job(command=[str(tmp_path / "missing.py")], ranks=1, quiet=True))
    with pytest.raises(CannotStart, match="There is no script"):
        job.wait(SECONDS)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_trial_has_the_threads_of_the_job_that_will_run(script, tmp_path, monkeypatch, ranks):
    for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        monkeypatch.delenv(name, raising=False)
    path = script(SETTINGS)
    job, trial = tmp_path / "of-job", tmp_path / "of-trial"
    assert Job(command=[path, str(job)], ranks=ranks, quiet=True).run() == 0
    found = tune.run_trial({}, ranks, [path, str(trial)], tmp_path, SECONDS)
    assert "too few updates" in found.failure
    for rank in range(ranks):
        settings = json.loads((tmp_path / f"of-job-{rank}").read_text())
        assert settings == json.loads((tmp_path / f"of-trial-{rank}").read_text())
        assert None not in settings.values()
