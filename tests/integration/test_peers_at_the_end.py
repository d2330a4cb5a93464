"""Ranks whose scripts end at different times and in different ways."""

import contextlib
import io
import signal
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.processes import Process, python, ranks, run

PROGRAM = Path(__file__).with_name("leaving_rank.py")
SAVING = Path(__file__).with_name("saving_rank.py")
SECONDS = 60
SHARES = "reads ['m/1 of rank 0', 'm/1 of rank 1']"


@contextlib.contextmanager
def job(folder, *ways, **environment):
    """Processes of the ranks that leave in these ways."""
    started = [
        Process(*python(PROGRAM, rank, len(ways), folder, way), **environment)
        for rank, way in enumerate(ways)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.end()


def until_said(process, text):
    until = time.monotonic() + SECONDS
    while text not in process.output():
        assert time.monotonic() < until, process.output()
        time.sleep(0.01)


def signalled(process, number):
    for member in process.family():
        member.send_signal(number)


def test_a_rank_that_has_ended_hands_out_its_share(tmp_path):
    with job(tmp_path, "saves late", "ends") as ranks:
        assert [rank.wait(SECONDS) for rank in ranks] == [0, 0]
        assert SHARES in ranks[0].output()
        assert ranks[1].output().splitlines() == [
            "rank 1 has met the others",
            "rank 1 leaves",
        ]


def test_it_may_end_by_an_exit_code_of_0(tmp_path):
    with job(tmp_path, "saves late", "exits well") as ranks:
        assert [rank.wait(SECONDS) for rank in ranks] == [0, 0]
        assert SHARES in ranks[0].output()


def test_a_thread_may_save_after_the_script(tmp_path):
    with job(tmp_path, "ends", "saves in the background") as ranks:
        assert [rank.wait(SECONDS) for rank in ranks] == [0, 0]
        assert SHARES in ranks[1].output()


def test_several_ranks_may_read_at_once(tmp_path):
    with job(tmp_path, "reads", "reads", "reads") as ranks:
        assert [rank.wait(SECONDS) for rank in ranks] == [0, 0, 0]
        for rank in ranks:
            assert "'m/1 of rank 0', 'm/1 of rank 1', 'm/1 of rank 2'" in rank.output()


@pytest.mark.parametrize("way, code", [("raises", 1), ("exits", 5), ("exits abruptly", 6)])
def test_a_rank_that_fails_leaves_at_once_with_its_code(tmp_path, way, code):
    with job(tmp_path, way, "sleeps") as ranks:
        assert ranks[0].wait(SECONDS) == code
        assert ranks[1].alive


@pytest.mark.parametrize("way, code", [("raises", 1), ("exits", 5), ("exits abruptly", 6)])
def test_the_failure_of_the_last_lets_the_others_end_well(tmp_path, way, code):
    with job(tmp_path, way, "ends", "ends") as ranks:
        assert [rank.wait(SECONDS) for rank in ranks] == [code, 0, 0]


def test_so_does_its_death(tmp_path):
    with job(tmp_path, "sleeps", "ends") as ranks:
        until_said(ranks[1], "has met the others")
        until_said(ranks[0], "has met the others")
        ranks[0].kill()
        assert ranks[1].wait(SECONDS) == 0


def test_a_rank_that_is_paused_is_not_waited_for_without_end(tmp_path):
    with job(tmp_path, "sleeps", "ends", GSNR_TF_STALL_SECONDS="1") as ranks:
        until_said(ranks[1], "has met the others")
        until_said(ranks[0], "has met the others")
        signalled(ranks[0], signal.SIGSTOP)
        assert ranks[1].wait(SECONDS) == 0
        assert ranks[0].alive


def test_a_rank_that_dies_while_others_read_is_named(tmp_path):
    with job(tmp_path, "reads", "dies when asked", "ends") as ranks:
        assert ranks[0].wait(SECONDS) == 0
        assert "rank 0 lost: Rank 1 " in ranks[0].output()
        assert [rank.wait(SECONDS) for rank in ranks] == [0, -signal.SIGKILL, 0]


def test_who_has_nothing_to_hand_out_does_not_stay(tmp_path):
    with job(tmp_path, "lets go and sleeps", "lets go") as ranks:
        assert ranks[1].wait(SECONDS) == 0
        assert ranks[0].alive


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_rank_that_stays(tmp_path, number):
    with job(tmp_path, "watches", "ends") as ranks:
        until_said(ranks[0], "sees that rank 1 has ended")
        signalled(ranks[1], number)
        assert ranks[1].wait(SECONDS) == -number
        assert ranks[0].alive


def state(path):
    """All that a .keras file holds of the optimizer and the weights."""
    with zipfile.ZipFile(path) as saved:
        with h5py.File(io.BytesIO(saved.read("model.weights.h5"))) as file:
            found = {}
            file.visititems(
                lambda name, item: (
                    found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
                )
            )
    return found


def test_the_model_can_be_saved_while_others_train_and_when_they_have_ended(tmp_path):
    done = run(ranks(2, SAVING, tmp_path), 300)
    assert done.code == 0, done.output
    assert "rank 0 of 2 leaves" in done.output and "rank 1 of 2 leaves" in done.output
    for when in ("at-3", "at-6", "at-the-end"):
        whole = state(tmp_path / f"none-{when}.keras")
        sliced = state(tmp_path / f"slices-{when}.keras")
        assert whole.keys() == sliced.keys() and any("optimizer" in key for key in whole)
        for key, value in whole.items():
            # Where two samples agree, rounding decides about a multiplier near its limit.
            np.testing.assert_allclose(sliced[key], value, atol=1e-3 * np.abs(value).max())
    for key, value in state(tmp_path / "slices-at-6.keras").items():
        np.testing.assert_array_equal(sliced[key], value)
