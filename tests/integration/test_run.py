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

from gsnr_tf.launch import Job, supervise
from tests.integration.two_hosts import ADDRESSES, possible, two_hosts
from tests.processes import Process, python, run

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


def test_each_rank_is_shown_with_its_number_and_saved(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", "7")
    code, out, _ = in_process(
        command=[RANK, "--flag", "two words"], ranks=2, folder=tmp_path / "saved"
    )
    assert code == 0
    told = introductions(out)
    assert set(told) == {0, 1}
    for rank, line in told.items():
        assert line["arguments"] == ["--flag", "two words"]
        assert line["path"] == os.environ["PATH"]
        assert line["threads"] == str(max(1, len(os.sched_getaffinity(0)) // 2))
        assert line["tensorflow_threads"] == "7"
        saved = (tmp_path / "saved" / f"rank-{rank}.log").read_text()
        assert f"I am {json.dumps(line)}" in saved.splitlines()


def test_the_traceback_of_the_failed_rank_comes_last(tmp_path):
    code, _, error = in_process(command=[RANK, "fail"], ranks=2, folder=tmp_path)
    assert code == 1
    last = error[error.index("\nRank 1 failed") :].strip().splitlines()
    assert last[0] == f"Rank 1 failed: exit code 1. Its output: {tmp_path}/rank-1.log"
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
    """Ctrl-C, a polite end, and one that leaves no time for anything."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
    jobs = [Process(*gsnr_tf("run", "--np", "2", RANK, "sleep")) for _ in numbers]
    try:
        for job in jobs:
            asleep(job, 2)
            # The ranks, a child of each, and those that started them.
            assert len(job.family()) > 4
        codes = [ends(job, number) for job, number in zip(jobs, numbers)]
        assert codes == [130, 143, -signal.SIGKILL]
    finally:
        for job in jobs:
            job.end()


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    with two_hosts(tmp_path_factory.mktemp("hosts")) as made:
        yield made


@needs_two_hosts
def test_two_hosts_train_together_by_the_script_for_it(hosts, tmp_path):
    start, environment = hosts
    host_file = tmp_path / "hosts"
    host_file.write_text("".join(f"{address} slots=1\n" for address in ADDRESSES))
    command = tmp_path / "gsnr-tf"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m gsnr_tf.cli "$@"\n')
    command.chmod(0o755)
    program = Path(__file__).with_name("two_hosts_training.py")
    finished = run(
        [*start, "bash", "horovod_scripts/run_hosts.sh", host_file, program],
        SECONDS,
        GSNR_TF=str(command),
        OUTPUT=str(tmp_path / "saved"),
        **environment,
    )
    assert finished.code == 0, finished.output
    weights = []
    for rank, address in enumerate(ADDRESSES):
        told = json.loads(
            (tmp_path / "saved" / f"rank-{rank}.log").read_text().split("\n")[-2]
        )
        assert (told["rank"], told["size"], told["host"]) == (rank, 2, address)
        weights.append(told["weights"])
    assert weights[0] == weights[1]


@needs_two_hosts
def test_no_process_stays_on_the_other_host(hosts):
    start, environment = hosts
    where = ",".join(f"{address}:1" for address in ADDRESSES)
    job = Process(
        *start, *gsnr_tf("run", "--hosts", where, RANK, "sleep"), **environment
    )
    try:
        asleep(job, 2)
        told = introductions(job.output())
        assert [told[rank]["host"] for rank in (0, 1)] == list(ADDRESSES)
        assert ends(job, signal.SIGKILL) == -signal.SIGKILL
    finally:
        job.end()


def test_a_host_that_is_unknown_is_named_before_anything_starts():
    started = run(gsnr_tf("run", "--hosts", "nowhere.invalid:2", RANK), SECONDS)
    assert started.code == 2
    assert "These hosts cannot be reached:\n  nowhere.invalid: ssh: " in started.output
    assert "I am" not in started.output


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
