"""How far a study is, and when it will be done."""

import threading
import time

from rich.progress import BarColumn, Progress, TextColumn


class StudyProgress:
    """A bar in a terminal; elsewhere a line for each contender and batch that is done.

    The time left is that of the runs so far: an early estimate is a rough one.

    Args:
        study: A `Study`.
        console: A `rich.console.Console`.
    """

    def __init__(self, study, console):
        self._study, self._console = study, console
        self._left = {_key(cell): study.runs_left(cell) for cell in study.cells}
        self._total = sum(self._left.values())
        self._start, self._lock = time.monotonic(), threading.Lock()
        self._bar = Progress(
            TextColumn("{task.completed}/{task.total} runs"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[left]}  {task.fields[last]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )

    def __enter__(self):
        self._bar.start()
        self._task = self._bar.add_task("", total=self._total, left="", last="")
        return self

    def __exit__(self, *_):
        self._bar.stop()

    def __call__(self, row):
        """Counts a finished run; may be called from any thread."""
        with self._lock:
            key = row["optimizer"], row["batch"], row["contender"], row["samples"]
            self._left[key] -= 1
            left = sum(self._left.values())
            done = self._total - left
            remaining = (time.monotonic() - self._start) / done * left
            told = f"{clock(remaining)} left" if left else "done"
            name = f"{row['optimizer']} {row['batch']:,} {row['contender']}"
            self._bar.update(self._task, completed=done, left=told, last=name)
            if self._bar.disable and not self._left[key]:
                self._console.print(
                    f"{done}/{self._total} runs, {told}: {name}", soft_wrap=True
                )


def _key(cell):
    contender = cell.contender
    return contender.rule, cell.batch, contender.label, contender.samples


def clock(seconds):
    """Seconds as people say them: 50 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
