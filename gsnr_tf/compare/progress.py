"""How far a study is, and when it will be done."""

import threading
import time

from rich.progress import BarColumn, Progress, TextColumn

_STAGES = {
    "first third": "a grid of {grid}, to a third of the updates",
    "grid": "the better half of a grid of {grid}",
    "few": "the best few on more seeds",
    "all": "the chosen ones on all seeds",
    "done": "done",
}


class StudyProgress:
    """A bar in a terminal; elsewhere a line for each stage of each race.

    The time left is that of the trainings so far, if no grid grows: an early estimate is
    a rough one.

    Args:
        study: A `Study`.
        console: A `rich.console.Console`.
    """

    def __init__(self, study, console):
        self._study, self._console = study, console
        self._stages = self._now()
        self._start, self._lock = time.monotonic(), threading.Lock()
        self._runs = len(study.rows())
        self._bar = Progress(
            TextColumn("{task.fields[runs]} runs"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[left]}  {task.fields[last]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )

    def _now(self):
        found = {}
        for group in self._study.groups:
            state = group.state()
            rates, values = map(len, state.grid)
            grid = f"{rates} rates" if values == 1 else f"{rates} rates × {values} values"
            found[group.name] = _STAGES[state.stage].format(grid=grid)
        return found

    def __enter__(self):
        self._bar.start()
        self._task = self._bar.add_task("", total=1.0, runs=self._runs, left="", last="")
        return self

    def __exit__(self, *_):
        self._bar.stop()

    def __call__(self, row):
        """Counts a finished run; may be called from any thread."""
        with self._lock:
            self._runs += 1
            left, spent = self._study.left(), self._study.spent
            remaining = (time.monotonic() - self._start) / spent * left
            told = f"{clock(remaining)} left" if left else "done"
            self._bar.update(
                self._task,
                completed=spent / (spent + left),
                runs=self._runs,
                left=told,
                last=f"{row['optimizer']} {row['batch']:,} {row['contender']}",
            )
            now = self._now()
            for name, stage in now.items():
                if self._bar.disable and stage != self._stages[name]:
                    line = f"{self._runs} runs, {told}: {name}: {stage}"
                    self._console.print(line, soft_wrap=True, highlight=False)
            self._stages = now


def clock(seconds):
    """Seconds as people say them: 50 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
