"""`gsnr-tf run`: what is shown and saved, how jobs fail, and that they end whole."""

import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from gsnr_tf.launch import CannotStart, Job, supervise
from tests.integration.two_hosts import ADDRESSES, possible, two_hosts
from tests.processes import Process, python
from tests.unit.test_rendezvous import put, touching

RANK = str(Path(__file__).with_name("rank.py"))
FAILING = str(Path(__file__).with_name("failing_rank.py"))
SECONDS = 300
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
        command = [RANK, "fail", "two words", str(folder / "rank 0 is there")]
        yield (
            in_process(command=command, ranks=2, folder=folder / "saved"),
            folder / "saved",
        )


def test_a_job_starts_without_tensorflow(tmp_path, monkeypatch):
    marker = tmp_path / "loaded"
    package = tmp_path / "packages" / "tensorflow"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    script = tmp_path / "script.py"
    script.write_text("print('up')\n")
    monkeypatch.setenv("PYTHONPATH", f"{package.parent}:{os.environ.get('PYTHONPATH', '')}")
    code, out, error = in_process(command=[str(script)], ranks=2)
    assert code == 0, error
    assert sorted(out.splitlines()) == ["0 | up", "1 | up"]
    assert not marker.exists()
    # The marker does tell of who loads it.
    script.write_text("import tensorflow\n")
    assert in_process(command=[str(script)], ranks=2)[0] == 0 and marker.exists()


def test_each_rank_is_shown_with_its_number_and_saved(failed):
    (_, out, _), folder = failed
    told = introductions(out)
    assert set(told) == {0, 1}
    for rank, line in told.items():
        assert line["arguments"][:2] == ["fail", "two words"]
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


def test_output_that_is_not_utf8_is_shown_whole_and_holds_nothing_up():
    job = Process(*gsnr_tf("run", "--np", "2", RANK, "bytes"))
    try:
        assert job.wait(SECONDS) == 0, job.output()
        lines = job.output().splitlines()
        for rank in (0, 1):
            assert lines.count(f"{rank} | caf\N{REPLACEMENT CHARACTER}") == 100_000
            assert lines.count(f"{rank} | caf\u00e9") == 1
            for shown in (" 1%", " 2%", "done"):
                assert f"{rank} | {shown}" in lines
    finally:
        job.end()


# How rank FAILING ends, the exit code of the job, and what is said first.
FAILURES = {
    ("raises", 1): (1, "Rank 1 failed"),
    ("raises", 0): (1, "Rank 0 failed"),
    ("raises", 1, "recorded"): (1, "Rank 1 failed"),
    ("is killed", 1): (137, "Rank 1 failed: ended by signal 9"),
    ("leaves", 0): (1, "Rank 0 "),
    ("leaves", 1, "recorded"): (1, "Rank 1 "),
    ("leaves a line open", 1): (3, "Rank 1 failed: exit code 3"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_the_rank_that_failed_is_named_whoever_ends_first(failure, tmp_path):
    code, says = FAILURES[failure]
    options = ["--np", 2, "--output-dir", tmp_path]
    job = Process(*gsnr_tf("run", *options, FAILING, *failure))
    try:
        assert job.wait(SECONDS) == code, job.output()
        kind, rank, *recorded = failure
        *_, last = job.output().partition(f"\n{says}")
        assert last, job.output()
        assert kind != "raises" or last.endswith("ValueError: a row is missing\n")
        assert kind != "leaves" or "while others were training" in last
        assert "horovodrun |" not in last
        for other in (0, 1):
            found = tmp_path / f"error-{other}.json"
            # One that leaves may be ended before it has.
            if (kind, other) == ("leaves", rank) and not found.exists():
                continue
            found = json.loads(found.read_text())
            assert found["cause"] == (other == rank)
            if (kind, other) == ("raises", rank) and recorded:
                assert (found["type"], found["message"]) == (
                    "ValueError",
                    "a row is missing",
                )
    finally:
        job.end()


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
    deadline = time.monotonic() + SECONDS
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


def test_strangers_find_nothing_and_disturb_nothing(tmp_path):
    """An elastic job on this machine: all of it listens on the loopback interface, and
    its rendezvous server does nothing for those who do not know the token."""
    hosts = tmp_path / "hosts"
    hosts.write_text("#!/bin/sh\necho localhost:1\necho 127.0.0.1:1\n")
    hosts.chmod(0o755)
    options = ["--np", 2, "--host-discovery-script", hosts, "--network-interface", "lo"]
    job = Process(*gsnr_tf("run", *options, FAILING, "waits", 0))
    try:
        asleep(job, 2)
        listening = {
            where.laddr.ip
            for process in job.family()
            for where in process.net_connections("inet")
            if where.status == psutil.CONN_LISTEN
        }
        assert listening == {"127.0.0.1"}
        (address,) = set(re.findall(r"\| asleep (\S+) (\d+)$", job.output(), re.M))
        assert address[0].startswith(f"127.0.0.1:{address[1]}/")
        before = job.output()
        touched = tmp_path / "touched"
        for path in ("/worker_addresses/localhost:0", "/global/0", "/x", "/"):
            assert put(int(address[1]), path, touching(touched)) == 403
        with socket.create_connection(("127.0.0.1", int(address[1]))) as stranger:
            stranger.sendall(bytes(range(256)) * 400)
        assert not touched.exists()
        assert ends(job, signal.SIGTERM) == 143
        after = job.output().removeprefix(before).split("\n")
        assert "Traceback" not in "".join(after)
    finally:
        job.end()


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
