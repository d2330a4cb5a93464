"""SIGTERM to a job: ranks get the time to save, the job ends whole, and goes on."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.integration.test_run import RANK, SECONDS, asleep, ends, gsnr_tf
from tests.processes import Process, python

TRAINING = Path(__file__).with_name("preempted_training.py")
STEPS = 12  # batches of an epoch
# After the update in which ranks are told, one more tells it to all.
TOLD = STEPS + 5


def ended(job):
    """What both ranks said at their end; they must agree."""
    told = re.findall(r"^(\d) \| ended (.*)$", job.output(), re.MULTILINE)
    assert sorted(rank for rank, _ in told) == ["0", "1"], job.output()
    first, second = (json.loads(line) for _, line in told)
    assert first == second
    return first


@pytest.fixture
def start():
    """Starts `gsnr-tf run --np 2` with further arguments; ends what is left."""
    jobs = []

    def start(*arguments):
        jobs.append(Process(*gsnr_tf("run", "--np", "2", *arguments)))
        return jobs[-1]

    yield start
    for job in jobs:
        job.end()


def test_a_job_that_is_told_to_end_saves_and_the_same_command_goes_on(start, tmp_path):
    command = [TRAINING, tmp_path / "saved", "from outside"]
    job = start(*command)
    asleep(job, 2)
    assert ends(job, signal.SIGTERM) == 75, job.output()
    assert "have saved. Start the same command to go on." in job.output()
    assert "Traceback" not in job.output()
    assert (tmp_path / "saved" / "latest").read_text() == f"preempted-{TOLD}\n"

    again = start(*command)
    assert again.wait(SECONDS) == 0, again.output()
    assert re.findall(r"^0 \| epoch (\d)$", again.output(), re.M) == ["1", "2"]
    assert ended(again)["updates"] == TOLD + 2 * STEPS


def test_where_one_rank_is_told_to_end_all_save_and_are_started_again(start, tmp_path):
    options = ["--max-restarts", "2", "--output-dir", tmp_path / "logs"]
    job = start(*options, TRAINING, tmp_path / "saved", "rank 0 alone")
    assert job.wait(SECONDS) == 0, job.output()
    assert "Starts again, 1 of 2." in job.output()
    assert "Starts again, 2 of 2." not in job.output()
    log = (tmp_path / "logs" / "rank-0.log").read_text()
    assert re.findall(r"^epoch (\d)$", log, re.M) == ["0", "1", "1", "2"]
    assert ended(job)["updates"] == TOLD + 2 * STEPS


def test_a_job_that_goes_on_failing_ends_with_the_last_failure(start, tmp_path):
    job = start("--max-restarts", "1", RANK, "fail", tmp_path / "there")
    assert job.wait(SECONDS) == 1, job.output()
    assert job.output().count("Rank 1 failed: exit code 1.") == 2
    assert job.output().count("Starts again") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ranks_may_take_longer_than_horovod_gives_them(start, tmp_path, number):
    """Also when the launcher is gone without a word, and nobody reads their output."""
    job = start(RANK, "saves", tmp_path)
    asleep(job, 2)
    assert ends(job, number) == (75 if number == signal.SIGTERM else -number)
    assert {path.name for path in tmp_path.iterdir()} == {"saved-0", "saved-1"}


# Like ssh it passes input, output and the exit code, and no signal; what it has started
# lives on when it is ended.
SSH = """
import os, subprocess, sys, threading

def copy(source, target):
    try:
        while data := source.read1():
            target.write(data)
            target.flush()
        target.close()
    except OSError:
        pass

(at,) = [i for i, argument in enumerate(sys.argv) if argument == "192.0.2.1"]
while sys.argv[at + 1] == "-o":
    at += 2
far = subprocess.Popen(["sh", "-c", " ".join(sys.argv[at + 1 :])],
    stdin=-1, stdout=-1, stderr=-1, start_new_session=True)
pairs = [(far.stdout, sys.stdout.buffer), (far.stderr, sys.stderr.buffer)]
threads = [threading.Thread(target=copy, args=pair) for pair in pairs]
into = threading.Thread(target=copy, args=(sys.stdin.buffer, far.stdin), daemon=True)
for thread in (*threads, into):
    thread.start()
code = far.wait()
for thread in threads:
    thread.join()
os._exit(code if code >= 0 else 255)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ranks_on_other_hosts_have_the_same_time(tmp_path, number):
    """Through a stand-in for ssh, to a host that is this one and does not look so."""
    ssh, saved = tmp_path / "bin" / "ssh", tmp_path / "saved"
    ssh.parent.mkdir()
    saved.mkdir()
    ssh.write_text(f"#!{sys.executable}\n{SSH}")
    ssh.chmod(0o755)
    program = (
        "import gsnr_tf.launch.check as check, sys; check.check = lambda *_: None; "
        "from gsnr_tf import cli; sys.exit(cli.main())"
    )
    where = ["--hosts", "192.0.2.1:2", "--network-interface", "lo"]
    job = Process(
        *python("-c", program, "run", *where, RANK, "saves", saved),
        PATH=f"{ssh.parent}:{os.environ['PATH']}",
    )
    try:
        asleep(job, 2)
        assert ends(job, number) == (75 if number == signal.SIGTERM else -number)
        assert {path.name for path in saved.iterdir()} == {"saved-0", "saved-1"}
    finally:
        job.end()


def test_ranks_that_do_not_end_are_ended(start):
    job = start("--grace", "1", RANK, "deaf")
    asleep(job, 2)
    assert ends(job, signal.SIGTERM) == 143, job.output()
