"""Two ranks that train, of which one does not come to the next update."""

import re
import signal
import sys
from pathlib import Path

import pytest

from tests.processes import horovodrun, run

PROGRAM = Path(__file__).with_name("stalling_rank.py")
SECONDS = 200
LIMITS = {
    "HOROVOD_STALL_CHECK_TIME_SECONDS": "2",
    "GSNR_TF_STALL_SECONDS": "4",
    "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "120",
    # Later than the 5 s for which an answer is waited for.
    "HOROVOD_GLOO_TIMEOUT_SECONDS": "20",
}


def job(way, **environment):
    return run(horovodrun(2, PROGRAM, way), SECONDS, **{**LIMITS, **environment})


@pytest.mark.parametrize(
    "way, text",
    [
        ("leaves", "rank 1 has left `fit`, and its script goes on (stalling_rank.py:"),
        pytest.param("is paused", "rank 1 does not answer", marks=pytest.mark.slow),
    ],
)
def test_a_lost_rank_is_named_and_ends_the_job(way, text):
    ended = job(way)
    assert ended.code != 0
    assert f" s in update 6: {text}" in ended.output
    if sys.version_info >= (3, 11):
        # The last of the traceback.
        why = r"^.*stderr>:gsnr_tf: Rank 0 has .*It gave up\.$"
        assert re.search(why, ended.output, re.M)
    assert "The job ends if that lasts for 4 s." in ended.output
    assert "It gives up." in ended.output
    # The script got an error, and could have handled it.
    assert "Horovod has been shut down" in ended.output
    assert "Process 0 exit with status code 1." in ended.output


def test_ranks_that_hold_nothing_for_each_other_are_watched_as_well():
    ended = job("leaves", SHARDING="none")
    assert ended.code != 0
    assert " s in an update: rank 1 has left `fit`, and its script goes on" in ended.output
    assert "It gives up." in ended.output


@pytest.mark.parametrize(
    "way, place",
    [
        ("averages", "gsnr.metrics"),
        pytest.param("shards", "gsnr.shard", marks=pytest.mark.slow),
    ],
)
def test_a_rank_with_a_batch_fewer_is_named_and_ends_the_job(way, place):
    ended = job(way)
    assert ended.code != 0
    says = f"s in update 10: rank 1 waits for all ranks at `{place}` (stalling_rank.py:"
    assert says in ended.output
    assert "It gives up." in ended.output


def test_a_rank_whose_script_has_ended_ends_the_wait_at_once():
    ended = job("ends")
    assert ended.code != 0
    assert "Horovod has been shut down" in ended.output
    assert "lost a rank: rank 1 has left `fit`, and its script has ended." in ended.output
    assert "gives up" not in ended.output


@pytest.mark.slow
def test_a_rank_that_evaluates_is_told_and_waited_for():
    done = job("evaluates")
    assert done.code == 0, done.output
    assert "s in update 6: rank 1 evaluates (stalling_rank.py:" in done.output
    assert "rank 0 is done" in done.output and "rank 1 is done" in done.output


@pytest.mark.parametrize(
    "way, code",
    [pytest.param("raises", 1, marks=pytest.mark.slow), ("dies", 128 + signal.SIGKILL)],
)
def test_a_rank_that_fails_is_seen_by_the_launcher(way, code):
    ended = job(way)
    assert ended.code != 0
    # horovodrun names who was first to end, which after an exception may be the rank that
    # lost the other.
    first = [f"Process 1 exit with status code {code}."]
    if way == "raises":
        first.append("Process 0 exit with status code 1.")
    assert any(line in ended.output for line in first)
    assert "gives up" not in ended.output
