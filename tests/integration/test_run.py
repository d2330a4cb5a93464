"""`gsnr-tf run`: what is shown and saved, how jobs fail, and that they end whole."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from gsnr_tf.launch import CannotStart, Job, supervise
from tests.integration.two_hosts import ADDRESSES, possible, two_hosts
from tests.processes import Process, python

RANK = str(Path(__file__).with_name("rank.py"))
SECONDS = 120
needs_two_hosts = pytest.mark.skipif(not possible(), reason="needs root, ip and sshd")


def gsnr_tf(*arguments):
    return python("-m", "gsnr_tf.cli", *arguments)


def in_process(**options):
    """Exit code, standard output and error of a job."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = Job(**options).run()
    return code, out.getvalue(), error.getvalue()


def introductions(output):
    """What ranks said of themselves, by rank."""
    lines = re.findall(r"^ *(\d+) \| I am (.*)$", output, re.MULTILINE)
    told = {int(rank): json.loads(line) for rank, line in lines}
    assert all(rank == line["rank"] for rank, line in told.items())
    return told


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """A job of two ranks of which rank 1 fails: its end, and its folder."""
    folder = tmp_path_factory.mktemp("failed")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_NUM_THREADS", raising=False)
        patch.setenv("TF_NUM_INTRAOP_THREADS", "7")
        command = [RANK, "fail", "two words"]
        yield (
            in_process(command=command, ranks=2, folder=folder / "saved"),
            folder / "saved",
        )


def test_each_rank_is_shown_with_its_number_and_saved(failed):
    (_, out, _), folder = failed
    told = introductions(out)
    assert set(told) == {0, 1}
    for rank, line in told.items():
        assert line["arguments"] == ["fail", "two words"]
        assert line["path"] == os.environ["PATH"]
        assert line["threads"] == str(max(1, len(os.sched_getaffinity(0)) // 2))
        assert line["tensorflow_threads"] == "7"
        saved = (folder / f"rank-{rank}.log").read_text()
        assert f"I am {json.dumps(line)}" in saved.splitlines()


def test_the_traceback_of_the_failed_rank_comes_last(failed):
    (code, _, error), folder = failed
    assert code == 1
    last = error[error.index("\nRank 1 failed") :].strip().splitlines()
    assert last[0] == f"Rank 1 failed: exit code 1. Its output: {folder}/rank-1.log"
    assert last[1] == "Traceback (most recent call last):"
    assert "KeyError: 'lost'" in last
    assert last[-1] == "ValueError: rank 1 has no\ttable"
    assert "horovodrun" not in error


def asleep(process, ranks):
    """Waits until all ranks sleep."""
    deadline = time.monotonic() + SECONDS
    while process.output().count("| asleep") < ranks:
        assert process.alive and time.monotonic() < deadline, process.output()
        time.sleep(0.1)


def ends(process, number):
    """Exit code after a signal to the command alone; nobody may be left."""
    os.kill(process._process.pid, number)
    code = process.wait(SECONDS)
    deadline = time.monotonic() + 30
    while process.family():
        assert time.monotonic() < deadline, (process.family(), process.output())
        time.sleep(0.1)
    return code


def test_signals_end_all_ranks_and_their_children():
    """Ctrl-C, and an end that leaves no time for anything."""
    numbers = (signal.SIGINT, signal.SIGKILL)
    jobs = [Process(*gsnr_tf("run", "--np", "2", RANK, "sleep")) for _ in numbers]
    try:
        for job in jobs:
            asleep(job, 2)
            # The ranks, a child of each, and those that started them.
            assert len(job.family()) > 4
        codes = [ends(job, number) for job, number in zip(jobs, numbers)]
        assert codes == [130, -signal.SIGKILL]
    finally:
        for job in jobs:
            job.end()


@needs_two_hosts
def test_two_hosts_train_together_and_end_together(tmp_path):
    """By the script for several hosts; no process stays on the other one."""
    (tmp_path / "hosts").write_text("".join(f"{a} slots=1\n" for a in ADDRESSES))
    command = tmp_path / "gsnr-tf"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m gsnr_tf.cli "$@"\n')
    command.chmod(0o755)
    script = ["bash", "horovod_scripts/run_hosts.sh", tmp_path / "hosts"]
    settings = {"GSNR_TF": str(command), "OUTPUT": str(tmp_path / "saved")}
    program = Path(__file__).with_name("two_hosts_training.py")
    with two_hosts(tmp_path) as (start, environment):
        job = Process(*start, *script, program, **settings, **environment)
        try:
            asleep(job, 2)
            weights = []
            for rank, address in enumerate(ADDRESSES):
                log = (tmp_path / "saved" / f"rank-{rank}.log").read_text()
                told = json.loads(log.split("\n")[-3])
                assert (told["rank"], told["size"], told["host"]) == (rank, 2, address)
                weights.append(told["weights"])
            assert weights[0] == weights[1]
            assert ends(job, signal.SIGKILL) == -signal.SIGKILL
        finally:
            job.end()


def test_a_host_that_is_unknown_is_named_before_anything_starts():
    job = Job(command=[RANK], hosts={"nowhere.invalid": 2})
    with pytest.raises(CannotStart, match="reached:\n  nowhere.invalid: ssh: "):
        job.run()


def supervised(*command, **options):
    return subprocess.Popen(
        [sys.executable, supervise.__file__, *command],
        stdout=subprocess.PIPE,
        **options,
    )


def assert_ends(number):
    """Within seconds: who adopts an orphan may take a moment to bury it."""
    deadline = time.monotonic() + 10
    while psutil.pid_exists(number) and psutil.Process(number).status() != "zombie":
        assert time.monotonic() < deadline, psutil.Process(number)
        time.sleep(0.01)


def test_a_command_ends_when_nobody_listens():
    process = supervised("sh", "-c", "sleep 600 & echo $!; wait")
    child = int(process.stdout.readline())
    assert os.path.exists(f"/proc/{child}")
    process.stdout.close()
    assert process.wait(SECONDS) == 128 + signal.SIGTERM
    assert_ends(child)


def test_what_a_command_leaves_behind_ends_with_it():
    process = supervised("sh", "-c", "sleep 600 & echo $!; exit 3")
    child = int(process.stdout.readline())
    assert process.wait(SECONDS) == 3
    assert_ends(child)
    process.stdout.close()
