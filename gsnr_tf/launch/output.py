"""What the ranks print: shown with their numbers, saved, and searched for the cause."""

import collections
import contextlib
import dataclasses
import functools
import json
import math
import os
import re
import sys
from pathlib import Path

from rich.console import Console

from gsnr_tf.launch import supervise

# What a line to the launcher begins with, which it reads and does not show; behind it the
# path of the newest commit on disk.
COMMIT = "::gsnr_tf:: commit: "
_FROM_RANK = re.compile(r"\[(\d+)\]<(stdout|stderr)>:(.*)", re.DOTALL)
_EXIT = re.compile(r"Process (\d+) exit with status code (\d+)\.")
_TRACEBACK = "Traceback (most recent call last):"
_CHAINED = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
# What ranks say that end for want of another.
_AFTERMATH = (
    "HorovodInternalError",
    "Horovod has been shut down",
    "PeerLost",
    "Connection reset by peer",
    "Connection closed by peer",
)
# How ranks end that are told to, and then made to.
_ENDED = (128 + 15, 128 + 9)
# What TensorFlow tells about itself whatever its log level is.
_NOISE = (
    "WARNING: All log messages before absl::InitializeLog() is called",
    "I0000 00:",
)
# What horovodrun.py says at the end of a wait.
_NO_HOSTS = "Waited in vain for hosts"
# What horovodrun says of ranks that fail, which is said better at the end.
_SAID_AT_THE_END = (
    "Terminating remaining workers after failure",
    "Exception in thread",
)
_TOLD = 20  # lines to show, and to search, of one that left no traceback
_KEPT = 400  # lines of each rank, to show when it fails
_COLORS = ("cyan", "green", "yellow", "blue", "magenta", "bright_cyan", "bright_green")


@dataclasses.dataclass
class _End:
    """How a rank has ended.

    Attributes:
        code: Exit code, 128 + signal where one ended it.
        time: Seconds since 1970, of the error where it was recorded.
        told: Whether the rank was told to end.
        recorded: Whether its error is the one that nothing caught, for certain.
        lines: Its traceback, or the last lines it wrote to standard error.
        traceback: Whether `lines` is one.
        left: Whether it was leaving without an error, for certain.
        type, message: Of the recorded error; `None` where there is none.
    """

    rank: int
    code: int
    time: float
    told: bool
    recorded: bool
    lines: list
    traceback: bool
    left: bool = False
    type: str | None = None
    message: str | None = None

    @property
    def aftermath(self):
        """Whether it ended for want of another, as far as it says."""
        said = self.lines
        if self.traceback:
            # The errors, and not the source lines that they went through.
            said = [line for line in said if not line.startswith(" ")]
        return any(sign in line for line in said for sign in _AFTERMATH)

    @property
    def failed_itself(self):
        """Whether an error of its own ended it, or something nobody asked for."""
        if self.code in (0, os.EX_TEMPFAIL) or self.aftermath:
            return False
        return self.recorded or self.traceback or not self.told


class Output:
    """Takes what horovodrun prints, line by line.

    Args:
        ranks: How many ranks there may be.
        folder: Where each rank's output is saved, in `rank-0.log` and so on, both
            streams in one file. `None` saves none.
        only: The one rank to show, without its number. `None` shows all.
        append: Whether the files go on after what an earlier start has left there.
        quiet: Whether nothing is shown.
        elastic: Whether others go on when a rank fails, so that it is told at once.

    Attributes:
        commit: Path of the last commit that an elastic job has saved since it started,
            a string; `None` where there is none.
        no_hosts: Whether the job ended since it waited for hosts in vain.
    """

    def __init__(self, ranks, folder=None, only=None, append=False, *, quiet=False, elastic=False):
        self.commit, self.no_hosts = None, False
        self._elastic = elastic
        self._mode = "a" if append else "w"
        self._digits = len(str(ranks - 1))
        self._only, self._quiet = only, quiet
        self._folder = Path(folder) if folder else None
        self._files = {}
        self._consoles = {
            "stdout": Console(file=sys.stdout, soft_wrap=True),
            "stderr": Console(file=sys.stderr, soft_wrap=True),
        }
        # The streams come by different ways, and not in the order they were written.
        self._last = collections.defaultdict(lambda: collections.deque(maxlen=_KEPT))
        self._errors = collections.defaultdict(lambda: collections.deque(maxlen=_KEPT))
        self._exits = {}  # code by rank, from horovodrun
        self._ends = []
        self._of_horovodrun = []
        self._in_traceback = False

    def take(self, line):
        """Shows and saves a line, which ends with a line feed."""
        found = _FROM_RANK.match(line)
        if found:
            self._of_rank(int(found[1]), found[2], found[3])
        else:
            self._of_launcher(line)

    def _of_rank(self, rank, stream, text):
        if stream == "stderr" and text.startswith(supervise.REPORT):
            # Cut off where the supervisor was killed.
            with contextlib.suppress(ValueError):
                report = json.loads(text.removeprefix(supervise.REPORT))
                self._ended(rank, report)
                if self._elastic and report["code"]:
                    self._tell_end(rank, report["code"])
            return
        if stream == "stderr" and text.startswith(COMMIT):
            self.commit = text.removeprefix(COMMIT).strip()
            return
        if self._folder:
            self._file(rank).write(text)
            self._file(rank).flush()
        if text.startswith(_NOISE):
            return
        self._last[rank].append(text.rstrip("\n"))
        if stream == "stderr":
            self._errors[rank].append(text.rstrip("\n"))
        if self._only is None:
            self._show(stream, f"{rank:>{self._digits}}", rank, text)
        elif rank == self._only and not self._quiet:
            self._consoles[stream].file.write(text)
            self._consoles[stream].file.flush()

    def _tell_end(self, rank, code):
        label = f"{rank:>{self._digits}}"
        self._show("stderr", label, rank, f"This process has failed: {meaning(code)}.")

    def _of_launcher(self, line):
        exited = _EXIT.match(line)
        if exited:
            self._exits[int(exited[1])] = int(exited[2])
            return
        self.no_hosts |= line.startswith(_NO_HOSTS)
        self._of_horovodrun.append(line)
        self._in_traceback |= line.startswith(_TRACEBACK)
        if not self._in_traceback and not line.startswith((*_NOISE, *_SAID_AT_THE_END)):
            self._show("stderr", "horovodrun", None, line)

    def _show(self, stream, name, rank, text):
        if self._quiet:
            return
        file = self._consoles[stream].file
        # As it is, with the escape sequences that it may have.
        end = "" if text.endswith("\n") else "\n"
        file.write(self._start(stream, name, rank) + text + end)
        file.flush()

    @functools.cache  # noqa: B019 - as long as the job runs
    def _start(self, stream, name, rank):
        """What a line begins with, in the rank's color where it goes to a terminal."""
        console = self._consoles[stream]
        color = "dim" if rank is None else _COLORS[rank % len(_COLORS)]
        with console.capture() as start:
            console.out(f"{name} |", style=color, highlight=False, end=" ")
        return start.get()

    def _file(self, rank):
        if rank not in self._files:
            path = self._path("rank", rank, "log")
            self._files[rank] = path.open(self._mode, encoding="utf-8")
        return self._files[rank]

    def _path(self, kind, rank, suffix):
        assert self._folder is not None
        return self._folder / f"{kind}-{rank:0{self._digits}}.{suffix}"

    def close(self):
        """Ends the files; writes one more for each rank that failed."""
        for file in self._files.values():
            file.close()
        for end in self.ends() if self._folder else []:
            if end.code:
                path = self._path("error", end.rank, "json")
                path.write_text(json.dumps(self._error(end), indent=1) + "\n")

    def _error(self, end):
        return {
            "rank": end.rank,
            "exit_code": end.code,
            "meaning": meaning(end.code),
            "time": end.time if math.isfinite(end.time) else None,
            "told_to_end": end.told,
            "cause": end == self.culprit(),
            "type": end.type,
            "message": end.message,
            "traceback": end.lines if end.traceback else [],
        }

    # ---- why it failed --------------------------------------------------------

    def _ended(self, rank, report):
        """Takes how a rank ended, from the supervisor beside it."""
        error, at = report["error"], report["time"]
        left = bool(error and error["left"])
        if error:
            at = error["time"]
        if error and not left:
            lines = error["traceback"].splitlines()
        else:
            error = None
            lines = last_traceback(list(self._errors[rank]))
        self._ends.append(
            _End(
                rank=rank,
                code=report["code"],
                time=at,
                told=report["ended"],
                recorded=bool(error),
                lines=lines or list(self._errors[rank])[-_TOLD:],
                traceback=bool(lines),
                left=left,
                type=error["type"] if error else None,
                message=error["message"] if error else None,
            )
        )

    def ends(self):
        """A list of how each rank ended, in the order of time, as far as is known."""
        known = {end.rank for end in self._ends}
        # Its host was lost, or its supervisor was ended: horovodrun knows the code.
        for rank, code in self._exits.items():
            if rank not in known:
                report = {"time": float("inf"), "ended": code in _ENDED, "error": None}
                self._ended(rank, {**report, "code": code})
        return sorted(self._ends, key=lambda end: end.time)

    def culprit(self):
        """The end of the rank that the job failed by, or `None`.

        When a rank fails, the others fail for lack of it or are ended, at times
        before it has ended itself. So what counts is not who ended first: an error
        that is no aftermath comes first, then a rank that left while others trained.
        """
        ends = self.ends()
        own = [end for end in ends if end.failed_itself]
        # A traceback of a rank that was told to end may be of an error it had handled.
        certain = [end for end in own if end.recorded or not end.told]
        left = [end for end in ends if end.code == 0 or end.left]
        failed = [end for end in ends if end.code]
        if not failed:
            return None
        # The others miss one, and only this one does not say so.
        silent = [end for end in failed if not end.aftermath]
        silent = silent if len(silent) == 1 else []
        return (certain or own or left or silent or failed)[0]

    def preempted(self):
        """Whether ranks were told to end and have saved, and none failed."""
        ends = self.ends()
        return any(end.code == os.EX_TEMPFAIL for end in ends) and not any(
            end.failed_itself for end in ends
        )

    def exit_code(self):
        """The one of the failed rank, unless it left with 0 or was ended; 0 for none."""
        ends = [end for end in (self.culprit(), *self.ends()) if end and end.code]
        own = [end.code for end in ends if not end.told]
        return (own or [end.code for end in ends] or [0])[0]

    def explanation(self):
        """What to show last, after a failure: the traceback of the failed rank."""
        cause = self.culprit()
        if cause is None:
            return "".join(self._of_horovodrun[-40:])
        saved = f" Its output: {self._file(cause.rank).name}" if self._folder else ""
        others = [end for end in self.ends() if end.code and end.aftermath]
        if others and not cause.failed_itself and not cause.aftermath:
            how = "left with exit code 0" if cause.code == 0 else "took no part any more"
            return (
                f"Rank {cause.rank} {how} while others were training: they cannot go on "
                f"without it. All ranks must train the same number of steps.{saved}\n"
                f"Rank {others[0].rank} then failed: {meaning(others[0].code)}.\n"
                + "".join(f"{line}\n" for line in others[0].lines)
            )
        lines = cause.lines if cause.traceback else list(self._last[cause.rank])[-_TOLD:]
        how = "" if cause.told else f": {meaning(cause.code)}"
        first = f"Rank {cause.rank} failed{how}.{saved}"
        return "\n".join([first, *lines]) + "\n"


def meaning(code):
    """An exit code in words."""
    if code <= 128:
        return f"exit code {code}"
    number = code - 128
    hint = ", as when memory runs out" if number == 9 else ""
    return f"ended by signal {number}{hint} (exit code {code})"


def last_traceback(lines):
    """From the first of the last chain of tracebacks on; empty where there is none."""
    starts = [i for i, line in enumerate(lines) if line.startswith(_TRACEBACK)]
    if not starts:
        return []
    start = starts.pop()
    while starts and any(line in _CHAINED for line in lines[starts[-1] : start]):
        start = starts.pop()
    return lines[start:]
