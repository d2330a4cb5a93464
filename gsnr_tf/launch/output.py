"""What the ranks print: shown with their numbers, saved, and searched for the cause."""

import collections
import re
import sys
from pathlib import Path

from rich.console import Console

_FROM_RANK = re.compile(r"\[(\d+)\]<(stdout|stderr)>:(.*)", re.DOTALL)
_EXIT = re.compile(r"Process (\d+) exit with status code (\d+)\.")
_TRACEBACK = "Traceback (most recent call last):"
_CHAINED = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
# How ranks end that lost a rank, or were ended for it.
_AFTERMATH = ("HorovodInternalError", "Horovod has been shut down", "Connection reset")
_ENDED = (128 + 15, 128 + 9)
# What TensorFlow tells about itself whatever its log level is.
_NOISE = (
    "WARNING: All log messages before absl::InitializeLog() is called",
    "I0000 00:",
)
# What horovodrun says of ranks that fail, which is said better at the end.
_SAID_AT_THE_END = (
    "Terminating remaining workers after failure",
    "Exception in thread",
)
_KEPT = 400  # lines of each rank, to show when it fails
_COLORS = ("cyan", "green", "yellow", "blue", "magenta", "bright_cyan", "bright_green")


class Output:
    """Takes what horovodrun prints, line by line.

    Args:
        ranks: How many ranks there may be.
        folder: Where each rank's output is saved, in `rank-0.log` and so on, both
            streams in one file. `None` saves none.
        only: The one rank to show, without its number. `None` shows all.
    """

    def __init__(self, ranks, folder=None, only=None):
        self._digits = len(str(ranks - 1))
        self._only = only
        self._folder = Path(folder) if folder else None
        self._files = {}
        self._consoles = {
            "stdout": Console(file=sys.stdout, soft_wrap=True),
            "stderr": Console(file=sys.stderr, soft_wrap=True),
        }
        # The streams come by different ways, and not in the order they were written.
        self._last = collections.defaultdict(lambda: collections.deque(maxlen=_KEPT))
        self._errors = collections.defaultdict(lambda: collections.deque(maxlen=_KEPT))
        self._exits = []
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
        self._last[rank].append(text.rstrip("\n"))
        if stream == "stderr":
            self._errors[rank].append(text.rstrip("\n"))
        if self._folder:
            self._file(rank).write(text)
            self._file(rank).flush()
        if text.startswith(_NOISE):
            return
        if self._only is None:
            self._show(stream, f"{rank:>{self._digits}} |", rank, text)
        elif rank == self._only:
            self._consoles[stream].file.write(text)
            self._consoles[stream].file.flush()

    def _of_launcher(self, line):
        exited = _EXIT.match(line)
        if exited:
            self._exits.append((int(exited[1]), int(exited[2])))
            return
        self._of_horovodrun.append(line)
        self._in_traceback |= line.startswith(_TRACEBACK)
        if not self._in_traceback and not line.startswith((*_NOISE, *_SAID_AT_THE_END)):
            self._show("stderr", "horovodrun |", None, line)

    def _show(self, stream, prefix, rank, text):
        console = self._consoles[stream]
        color = "dim" if rank is None else _COLORS[rank % len(_COLORS)]
        console.out(prefix, style=color, highlight=False, end=" ")
        # As it is, with the escape sequences that it may have.
        console.file.write(text if text.endswith("\n") else text + "\n")
        console.file.flush()

    def _file(self, rank):
        if rank not in self._files:
            path = self._folder / f"rank-{rank:0{self._digits}}.log"
            self._files[rank] = path.open("w", encoding="utf-8")
        return self._files[rank]

    def close(self):
        for file in self._files.values():
            file.close()

    # ---- why it failed --------------------------------------------------------

    def culprit(self):
        """`(rank, exit code)` of the rank that failed first, or `None`.

        When a rank fails, the others fail for lack of it or are ended, at times
        before it has ended itself.
        """

        def aftermath(rank, code):
            return code in _ENDED or any(
                sign in line
                for line in list(self._errors[rank])[-3:]
                for sign in _AFTERMATH
            )

        own = [failure for failure in self._exits if not aftermath(*failure)]
        return next(iter(own or self._exits), None)

    def explanation(self):
        """What to show last, after a failure: the traceback of the failed rank."""
        failed = self.culprit()
        if failed is None:
            return "".join(self._of_horovodrun[-40:])
        rank, code = failed
        saved = f" Its output: {self._file(rank).name}" if self._folder else ""
        lines = last_traceback(list(self._errors[rank])) or list(self._last[rank])[-20:]
        return (
            "\n".join([f"Rank {rank} failed: {meaning(code)}.{saved}", *lines]) + "\n"
        )


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
