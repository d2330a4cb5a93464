"""Says for whom a rank waits in an update, and does not let it wait for ever.

Horovod's own inspector knows the tensors and ranks of a collective. The ranks
themselves know more: who waits asks the others what they are doing. All is done by one
thread of each process, which looks once a second at a counter and at the stack of the
main thread.
"""

import functools
import json
import os
import sys
import threading
import time

from gsnr_tf.comm import phase, steward

_LOOK_SECONDS = 1.0
_ASK_SECONDS = 10.0
# For the main thread to get an error out of the collective that it waits in.
_GRACE_SECONDS = 30.0
_MOST_NAMED = 4
_SHUT_DOWN = "Horovod has been shut down"

# Where a rank waits for all others, and what those do that are there and will not come.
_WAITS = ("trains", "meets")
_ALIVE = ("trains", "meets", "elsewhere", "ended")

# What a rank does, for people; the others are at their places in `_described`.
_WORDS = {
    "calls back": "runs a callback",
    "evaluates": "evaluates",
    "predicts": "predicts",
    "saves": "saves or loads",
    "compiles": "compiles",
    "trains alone": "trains with an optimizer that others do not share",
}


def _seconds(variable, default):
    """The limit in an environment variable; 0 is none."""
    return float(os.environ.get(variable, default)) or float("inf")


def tell_limit():
    """Seconds until a rank that waits says so."""
    return _seconds("HOROVOD_STALL_CHECK_TIME_SECONDS", "60")


def busy_limit():
    """Seconds until it gives up on a rank that answers and is at work."""
    return _seconds("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", "1800")


class Watch:
    """Watches the main thread of this process.

    Args:
        progress: Function that tells how often the shares of this process have
            changed: a dict of numbers, with the same keys on all ranks.

    Attributes:
        waited: Seconds for which the main thread has been in one update, or one meeting
            of all ranks outside of updates.
    """

    def __init__(self, progress):
        self._progress = progress
        self._ranks, self._rank = [], 0
        self._known, self._was_in_fit, self._failed = {}, False, False
        self._now, self._gave_up = phase.Phase("elsewhere", False, ""), None
        self._rest()

    def _rest(self):
        self._since, self.waited = time.monotonic(), 0.0
        self._told, self._next_question, self._well = False, 0.0, {}

    def follow(self, ranks, rank):
        """Watches for these ranks from now on: list of `Member`, and the own index."""
        self._ranks, self._rank = ranks, rank
        self._was_in_fit = self._was_in_fit or phase.of_main_thread().in_fit

    def status(self):
        """What the others may know of this process, a dict."""
        now = phase.of_main_thread()
        return {
            "kind": "fails" if self._failed else now.kind,
            "where": now.where,
            "place": now.place,
            "left_fit": self._was_in_fit and not now.in_fit,
            "progress": self._known,
            "waited": self.waited,
        }

    def run(self):
        """Looks until the main thread ends."""
        pause = min(_LOOK_SECONDS, tell_limit() / 4)
        while threading.main_thread().is_alive():
            self.look()
            threading.main_thread().join(pause)

    def look(self):
        """Notes whether the update goes on, and does what is due where it does not."""
        if not self._stuck():
            self._rest()
        elif self.waited >= tell_limit() and time.monotonic() >= self._next_question:
            found = self.ask_all()
            self._next_question = time.monotonic() + min(_ASK_SECONDS, tell_limit() / 4)
            # The answers may have taken a while.
            if self._stuck():
                self._judge(found)
            else:
                self._rest()

    def _stuck(self):
        """Whether the main thread waits in the same place as at the last look.

        It has not come back from the same call, and no share has changed.
        """
        progress, now = self._progress(), phase.of_main_thread()
        self._was_in_fit = self._was_in_fit or now.in_fit
        self.waited = time.monotonic() - self._since
        same = progress == self._known and now.call is self._now.call
        self._known, self._now = progress, now
        return same and now.kind in _WAITS

    def ask_all(self):
        """What each other rank says of itself: dict of rank and status."""
        found = {}
        for rank, one in enumerate(self._ranks):
            if rank == self._rank:
                continue
            try:
                found[rank] = json.loads(one.ask("status"))
            except ConnectionRefusedError:
                found[rank] = {"kind": "gone"}
            except OSError:
                found[rank] = {"kind": "silent"}
        return found

    def beside(self, status):
        """Whether a rank is in the same update as this one, or at the same meeting."""
        # A share that only one of them still knows says nothing.
        theirs = status.get("progress", {})
        same = all(theirs.get(key, count) == count for key, count in self._known.items())
        here = self._now.kind, self._now.place
        return same and (status["kind"], status.get("place", "")) == here

    def _judge(self, found):
        missing = {r: status for r, status in found.items() if not self.beside(status)}
        if not missing:
            return
        now, over = time.monotonic(), False
        for rank, status in missing.items():
            lost = _lost(status)
            if not lost:
                self._well[rank] = now
            for_so_long = now - max(self._since, self._well.get(rank, 0.0))
            over |= lost and for_so_long >= steward.lost_limit()
        over |= self.waited >= busy_limit()
        text = f"{self._waits()}: {described(missing)}"
        speaks = all(rank > self._rank or rank in missing for rank in found)
        if not self._told and speaks:
            lost = any(map(_lost, missing.values()))
            limit = steward.lost_limit() if lost else busy_limit()
            _say(f"{text}. The job ends if that lasts for {limit:.0f} s.")
        self._told = True
        if over and os.environ.get("HOROVOD_ELASTIC") != "1":
            self._give_up(text)
        elif over and all(status["kind"] in _ALIVE for status in missing.values()):
            self._end(text)

    def _waits(self):
        # Where nothing is shared, updates are not counted.
        done = max(self._known.values(), default=None)
        where = "in an update" if done is None else f"in update {done + 1}"
        if self._now.kind == "meets":
            after = "" if done is None else f", after update {done}"
            where = f"for all ranks at `{self._now.place}`{after}"
        return f"Rank {self._rank} has waited {self.waited:.0f} s {where}"

    def _give_up(self, text):
        """Makes the main thread get an error out of its collective, or the process end."""
        _say(f"{text}. It gives up.")
        self._gave_up = text
        threading.Thread(target=steward.shut_horovod_down, daemon=True).start()
        until = time.monotonic() + _GRACE_SECONDS
        while phase.of_main_thread().kind in _WAITS:
            if time.monotonic() > until:
                _say(f"Rank {self._rank} cannot be woken, and is ended.")
                os._exit(1)
            time.sleep(0.05)
        self._rest()

    def _end(self, text):
        """Ends the process of an elastic job.

        By an error it would begin again from the last commit, as all others would, and
        come here again.
        """
        _say(f"{text}. It gives up, and is ended.")
        os._exit(1)

    def annotate(self, error):
        """Lets an error of Horovod's say why, where this rank has given up."""
        # Notes are new in Python 3.11; before, the line on standard error must do.
        if self._gave_up and _SHUT_DOWN in str(error) and hasattr(error, "add_note"):
            error.add_note(f"gsnr_tf: {self._gave_up}. It gave up.")

    def explain(self, error):
        """Says who is missing, where Horovod has ended an update without saying why."""
        self._failed = True
        if _SHUT_DOWN not in str(error):
            return
        missing = {
            rank: status
            for rank, status in self.ask_all().items()
            if _lost(status) and status["kind"] not in ("fails", "meets")
        }
        if missing:
            _say(f"Rank {self._rank} lost a rank: {described(missing)}.")


def _lost(status):
    """Whether a rank will hardly come back to the update that others are in."""
    elsewhere = status["kind"] == "elsewhere" and status["left_fit"]
    # Who waits for all ranks at another place waits for those that wait for it.
    return elsewhere or status["kind"] in ("gone", "silent", "ended", "fails", "meets")


def described(found):
    """What ranks are doing, for people: dict of rank and status."""
    texts = [f"rank {rank} {_described(status)}" for rank, status in sorted(found.items())]
    left = len(texts) - _MOST_NAMED
    return ", ".join(texts[:_MOST_NAMED]) + (f" and {left} more" if left > 0 else "")


def _described(status):
    kind = status["kind"]
    if kind == "gone":
        return "is gone"
    if kind == "silent":
        return "does not answer"
    if kind == "ended":
        return "has left `fit`, and its script has ended"
    if kind == "fails":
        return "fails"
    place = f" ({status['where']})" if status["where"] else ""
    if kind == "elsewhere" and status["left_fit"]:
        return f"has left `fit`, and its script goes on{place}"
    if kind == "elsewhere":
        return f"is outside of `fit`{place}"
    if kind == "meets":
        return f"waits for all ranks at `{status['place']}`{place}"
    if kind == "trains":
        done = max(status["progress"].values(), default=None)
        return "is in an update" if done is None else f"is in update {done + 1}"
    return _WORDS[kind] + place


def _say(text):
    print(f"gsnr_tf: {text}", file=sys.stderr, flush=True)


@functools.cache
def watch(progress):
    """The `Watch` of this process, which starts at the first call."""
    made = Watch(progress)
    show = sys.excepthook

    def explaining(kind, error, trace):
        made.annotate(error)
        show(kind, error, trace)
        made.explain(error)

    sys.excepthook = explaining
    if os.environ.get("HOROVOD_STALL_CHECK_DISABLE", "0") in ("", "0"):
        threading.Thread(target=made.run, name="gsnr_tf stall", daemon=True).start()
    return made
