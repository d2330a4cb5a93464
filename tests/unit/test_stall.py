"""What a rank that waits makes of what the others say."""

import json
import time

import pytest

from gsnr_tf.comm import phase, stall
from gsnr_tf.comm.phase import Phase

TRAINS = {"kind": "trains", "where": "", "left_fit": False, "progress": {"a": 4}}


def does(kind, where="train.py:7", left_fit=False):
    return {"kind": kind, "where": where, "left_fit": left_fit, "progress": {"a": 4}}


class Other:
    """A rank that says what it is told to say."""

    def __init__(self, said):
        self.said = said

    def ask(self, question):
        if isinstance(self.said, Exception):
            raise self.said
        return json.dumps(self.said).encode()


@pytest.fixture
def waiting(monkeypatch):
    """`waiting(*others, rank=0)`: a `Watch` of a rank in update 5, and what it did."""
    monkeypatch.setenv("HOROVOD_STALL_CHECK_TIME_SECONDS", "60")
    monkeypatch.setenv("GSNR_TF_STALL_SECONDS", "300")
    monkeypatch.setenv("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", "1800")
    monkeypatch.delenv("HOROVOD_ELASTIC", raising=False)
    monkeypatch.setattr(phase, "of_main_thread", lambda: Phase("trains", True, "t.py:1"))
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    class Recorded(stall.Watch):
        ended = None

        left = None

        def _give_up(self, text):
            self.ended = text

        def _end(self, text):
            self.left = text

        def after(self, seconds):
            """Looks once more when it has waited for so long."""
            now[0] = 1000.0 + seconds
            self.look()

    def made(*others, rank=0):
        now[0] = 1000.0
        watch = Recorded(lambda: {"a": 4})
        ranks = [Other(said) for said in others]
        ranks.insert(rank, Other(None))
        watch.follow(ranks, rank)
        watch.look()  # learns where it is, and begins to count
        return watch

    return made


@pytest.mark.parametrize(
    "said, text",
    [
        (does("elsewhere", left_fit=True), "has left `fit`, and its script goes on (train.py:7)"),
        (does("ended", ""), "has left `fit`, and its script has ended"),
        (does("evaluates"), "evaluates (train.py:7)"),
        (does("predicts"), "predicts (train.py:7)"),
        (does("saves"), "saves or loads (train.py:7)"),
        (does("compiles"), "compiles (train.py:7)"),
        (does("calls back"), "runs a callback (train.py:7)"),
        (does("elsewhere"), "is outside of `fit` (train.py:7)"),
        ({**TRAINS, "progress": {"a": 3}}, "is in update 4"),
        (TimeoutError("timed out"), "does not answer"),
        (ConnectionRefusedError("refused"), "is gone"),
    ],
)
def test_says_once_what_the_missing_rank_does(waiting, capsys, said, text):
    watch = waiting(said)
    watch.after(59)
    assert capsys.readouterr().err == ""
    for seconds in (62, 80, 120):
        watch.after(seconds)
    printed = capsys.readouterr().err
    assert printed.startswith(f"gsnr_tf: Rank 0 has waited 62 s in update 5: rank 1 {text}.")
    assert printed.count("\n") == 1


def test_ranks_in_one_update_have_nothing_to_say(waiting, capsys):
    watch = waiting(TRAINS, TRAINS)
    for seconds in range(60, 4000, 60):
        watch.after(seconds)
    assert capsys.readouterr().err == "" and watch.ended is None


def test_of_those_that_wait_the_first_speaks(waiting, capsys):
    missing = does("evaluates")
    for watch in (waiting(TRAINS, missing, rank=1), waiting(missing, TRAINS, rank=2)):
        watch.after(61)
        assert capsys.readouterr().err == ""
    waiting(missing, TRAINS, rank=1).after(61)
    assert "Rank 1 has waited 61 s in update 5: rank 0 evaluates" in capsys.readouterr().err


def test_many_missing_ranks_fit_one_line(waiting, capsys):
    waiting(*[does("saves", "")] * 7).after(61)
    assert "rank 4 saves or loads and 3 more." in capsys.readouterr().err


LOST = [
    does("elsewhere", left_fit=True),
    does("ended"),
    TimeoutError("timed out"),
    ConnectionRefusedError("refused"),
]
BUSY = [does("evaluates"), does("compiles"), does("elsewhere"), does("calls back")]


@pytest.mark.parametrize("said", LOST)
def test_a_lost_rank_ends_the_wait_after_5_minutes(waiting, said):
    watch = waiting(said)
    for seconds in range(60, 300, 20):
        watch.after(seconds)
    assert watch.ended is None
    watch.after(301)
    assert watch.ended.startswith("Rank 0 has waited 301 s in update 5: rank 1 ")


@pytest.mark.parametrize("said", BUSY)
def test_a_busy_rank_is_waited_for_half_an_hour(waiting, said):
    watch = waiting(said)
    for seconds in range(60, 1800, 20):
        watch.after(seconds)
    assert watch.ended is None
    watch.after(1801)
    assert watch.ended


def test_the_5_minutes_begin_when_a_rank_is_lost(waiting):
    watch = waiting(does("evaluates"))
    for seconds in range(60, 1000, 20):
        watch.after(seconds)
    watch._ranks[1].said = does("elsewhere", left_fit=True)
    for seconds in range(1000, 1280, 20):
        watch.after(seconds)
    assert watch.ended is None
    watch.after(1290)
    assert watch.ended


def test_who_went_on_while_it_asked_keeps_still(waiting, monkeypatch, capsys):
    watch = waiting(LOST[0])

    def ask_all():
        watch._progress = lambda: {"a": 5}
        return {1: LOST[0]}

    monkeypatch.setattr(watch, "ask_all", ask_all)
    for seconds in (400, 401, 450):
        watch.after(seconds)
        assert watch.ended is None and capsys.readouterr().err == ""
    assert watch.waited == 50


def test_a_share_that_one_rank_has_let_go_does_not_part_them(waiting, capsys):
    waiting({**TRAINS, "progress": {"a": 4, "b": 9}}, {**TRAINS, "progress": {}}).after(61)
    assert capsys.readouterr().err == ""


def test_0_is_no_limit(waiting, monkeypatch):
    monkeypatch.setenv("GSNR_TF_STALL_SECONDS", "0")
    monkeypatch.setenv("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", "0")
    watch = waiting(LOST[0])
    watch.after(100_000)
    assert watch.ended is None


@pytest.mark.parametrize("said", LOST[2:])
def test_an_elastic_job_whose_rank_is_dead_is_left_to_horovod(waiting, monkeypatch, capsys, said):
    monkeypatch.setenv("HOROVOD_ELASTIC", "1")
    watch = waiting(said)
    watch.after(61)
    watch.after(4000)
    assert watch.ended is watch.left is None and "rank 1" in capsys.readouterr().err


@pytest.mark.parametrize("said", [LOST[0], {**does("meets"), "place": "gsnr.shard"}])
def test_an_elastic_job_whose_rank_left_would_come_there_again(waiting, monkeypatch, said):
    monkeypatch.setenv("HOROVOD_ELASTIC", "1")
    watch = waiting(said)
    for seconds in range(60, 300, 20):
        watch.after(seconds)
    assert watch.left is None
    watch.after(301)
    assert watch.ended is None and "301 s in update 5: rank 1 " in watch.left


MEETS = {**TRAINS, "kind": "meets", "place": "gsnr.metrics", "where": "train.py:7"}


def test_ranks_that_wait_for_each_other_in_two_places_are_lost(waiting, monkeypatch, capsys):
    """One has a batch fewer: it is at the end of the epoch, the other in an update."""
    watch = waiting(MEETS)
    watch.after(61)
    watch.after(301)
    assert "rank 1 waits for all ranks at `gsnr.metrics` (train.py:7)" in watch.ended

    here = Phase("meets", True, "", None, "gsnr.metrics")
    monkeypatch.setattr(phase, "of_main_thread", lambda: here)
    capsys.readouterr()
    for other in (TRAINS, {**MEETS, "place": "gsnr.shard"}):
        watch = waiting(other)
        watch.after(61)
        said = "Rank 0 has waited 61 s for all ranks at `gsnr.metrics`, after update 4: "
        assert said in capsys.readouterr().err
    # Who is beside is waited for as long as Horovod does.
    watch = waiting(MEETS)
    watch.after(1700)
    assert watch.ended is None and capsys.readouterr().err == ""


def test_the_error_that_ends_a_rank_carries_why(waiting):
    watch = waiting(LOST[0])
    watch._gave_up = "Rank 0 has waited 301 s in update 5: rank 1 evaluates"
    error, other = RuntimeError("Horovod has been shut down."), ValueError("no such file")
    for one in (error, other):
        watch.annotate(one)
    notes = ["gsnr_tf: Rank 0 has waited 301 s in update 5: rank 1 evaluates. It gave up."]
    # Notes are new in Python 3.11.
    assert getattr(error, "__notes__", notes) == notes
    assert not hasattr(other, "__notes__")


def test_an_update_or_another_occupation_begins_the_count_anew(waiting, monkeypatch, capsys):
    watch = waiting(LOST[0])
    watch.after(61)
    assert watch.waited == 61 and capsys.readouterr().err
    monkeypatch.setattr(watch, "_progress", lambda: {"a": 5})
    watch.after(62)
    assert watch.waited == 0
    monkeypatch.setattr(phase, "of_main_thread", lambda: Phase("calls back", True, ""))
    watch.after(4000)
    assert watch.waited == 0 and watch.ended is None


def test_another_call_begins_the_count_anew(waiting, monkeypatch):
    """Steps that move none of our counters are somebody else's, and come and go."""
    watch = waiting(LOST[0])
    for seconds in range(1, 1000, 100):
        call = object()
        monkeypatch.setattr(phase, "of_main_thread", lambda: Phase("trains", True, "", call))
        watch.after(seconds)
        assert watch.waited == 0
    assert watch.ended is None


def test_an_error_of_horovod_is_explained(waiting, capsys):
    waiting(does("evaluates"), does("fails"), does("ended")).explain(
        RuntimeError("Graph execution error: Horovod has been shut down. This was …")
    )
    expected = "gsnr_tf: Rank 0 lost a rank: rank 3 has left `fit`, and its script has ended.\n"
    assert capsys.readouterr().err == expected


def test_other_errors_speak_for_themselves(waiting, capsys):
    watch = waiting(LOST[1])
    watch.explain(ValueError("no such file"))
    assert capsys.readouterr().err == ""
    assert watch.status()["kind"] == "fails"
