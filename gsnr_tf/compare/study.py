"""A study: all contenders of an optimizer at a batch race together, in worker processes.

All that is known is in the run folder's `results.jsonl`, one finished run a line. What is
to be done follows from it (`race`), so that a study that was stopped goes on from there.
"""

import contextlib
import fcntl
import json
import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed

from gsnr_tf.compare import baselines, race
from gsnr_tf.compare.race import Run, Setting
from gsnr_tf.compare.training import values_of
from gsnr_tf.compare.workers import Worker


class Group:
    """One optimizer at one batch: the cells that race together, and what they have shown.

    Attributes:
        cells: List of `Cell`, numbered as the contenders of the race.
        plan: The `race.Plan`.
        known: Dict from `Run` to its loss.
        rows: Dict from `Run` to its row.
        taken: Set of the `Run`s that somebody is doing.
    """

    def __init__(self, cells, plan):
        self.cells, self.plan = cells, plan
        self.known, self.rows, self.taken = {}, {}, set()
        self._state = None

    @property
    def name(self):
        """Such as "adam 16,000"."""
        return f"{self.cells[0].contender.rule} {self.cells[0].batch:,}"

    def state(self):
        """The `race.State` now; it is decided anew only when a stage is over."""
        now = self._state
        if now is None or (not now.runs and now.stage != "done"):
            self._state = race.state(self.plan, self.known)
        return self._state

    def learn(self, run, loss, row):
        """Takes note of a finished run."""
        self.known[run], self.rows[run] = loss, row
        self.taken.discard(run)
        if self._state is not None:
            left = [other for other in self._state.runs if other != run]
            self._state = self._state._replace(runs=left)

    def pending(self):
        """The runs that can be begun now, of one stage."""
        return [run for run in self.state().runs if run not in self.taken]

    def left(self):
        """Whole trainings still to be done, a float."""
        return race.cost_left(self.plan, self.known, self.state())


class Study:
    """The bookkeeping of a study in a run folder.

    Args:
        settings: `Settings`, written to the folder or found there.
        folder: `Path`.
        task: The `Task`.

    Raises:
        ValueError: The folder holds another study, or another process works on it.
    """

    def __init__(self, settings, folder, task):
        settings.write(folder)
        self._alone = _only_user_of(folder)
        self.settings, self.folder, self._task = settings, folder, task
        # Guards what is known and taken; those who find nothing to do wait for news.
        self._news = threading.Condition()
        self._stopping = False
        # Models that some worker has traced: cells and values of the regularizer.
        self._traced = set()
        # Whole trainings that were done here.
        self.spent = 0.0
        self.cells = settings.cells()
        self.groups = self._make_groups()
        for row in _read(folder / "results.jsonl"):
            self._learn(row)

    def _make_groups(self):
        cells = {}
        for cell in self.cells:
            cells.setdefault((cell.contender.rule, cell.batch), []).append(cell)
        return [Group(own, self._plan(own)) for own in cells.values()]

    def _plan(self, cells):
        name = cells[0].contender.rule
        rates = race.first_rates(self.start_of(name), self.settings.trials)
        grid = race.Grid(rates, values_of(self._task, name))
        asked = self.settings
        return race.Plan(
            contenders=len(cells),
            grid=grid,
            seeds=asked.seeds,
            limit=self._task.regularizer_limit,
            first_seed=asked.first_seed,
            growths=asked.growths,
            # Base comes first, or the control where Keras has none.
            base=0 if len(cells) > 1 else None,
        )

    def start_of(self, rule):
        """The learning rate around which the first grid of an optimizer lies."""
        return self._task.learning_rates.get(rule, baselines.of(rule).learning_rate)

    # ---- what there is to do, and what is known ---------------------------------

    def left(self):
        """Whole trainings still to be done, as far as that can be said, a float."""
        with self._news:
            return sum(group.left() for group in self.groups)

    def rows(self):
        """All finished runs, each a dict that JSON can hold."""
        with self._news:
            return [row for group in self.groups for row in group.rows.values()]

    def _learn(self, row):
        group, run = self._run_of(row)
        group.learn(run, self._loss(row), row)

    def _run_of(self, row):
        for group in self.groups:
            for number, cell in enumerate(group.cells):
                if _who(cell) == {key: row[key] for key in _who(cell)}:
                    setting = Setting(row["learning_rate"], row["regularizer"])
                    return group, Run(number, setting, row["seed"], row["whole"])
        raise ValueError(f"{self.folder} has a run of nobody in this study: {row}")

    def _loss(self, row):
        """Less is better. The worst there is for a run that diverged."""
        if row["diverged"]:
            return math.inf
        sign = -1 if self._task.higher_is_better else 1
        return sign * row["validation"]

    # ---- doing it -----------------------------------------------------------------

    def work(self, train, say):
        """Does runs until there are none left, also those that others make possible.

        Args:
            train: Callable `(index, regularizer, learning_rate=, seed=, whole=)` as
                `Worker.train`, with the index of the cell.
            say: Callable, told each row as it is finished.
        """
        traced = set()
        while (found := self._take(traced)) is not None:
            group, run = found
            cell, (rate, value) = group.cells[run.contender], run.setting
            traced |= {(cell, value), (cell, run.setting, run.seed)}
            index = self.cells.index(cell)
            result = train(index, value, learning_rate=rate, seed=run.seed, whole=run.whole)
            row = {**_who(cell), "learning_rate": rate, "regularizer": value}
            row |= {"seed": run.seed, "whole": run.whole, **result}
            with self._news:
                self.spent += race.cost(run, group.known)
                self._append(row)
                self._learn(row)
                self._news.notify_all()
            say(row)

    def _take(self, traced):
        """A group and a run of it that nobody else has, or `None` at the end.

        If it can, one that this worker has begun, or whose model it has traced, or else
        nobody has: to trace a model takes as long as a small training.
        """

        def preference(found):
            group, run = found
            cell = group.cells[run.contender]
            model = cell, run.setting.regularizer
            begun = (cell, run.setting, run.seed) in traced
            return not begun, model not in traced, model in self._traced

        with self._news:
            while not self._stopping:
                found = [(group, run) for group in self.groups for run in group.pending()]
                if found:
                    group, run = min(found, key=preference)
                    group.taken.add(run)
                    self._traced.add((group.cells[run.contender], run.setting.regularizer))
                    return group, run
                if not any(group.taken for group in self.groups):
                    return None
                self._news.wait()
        return None

    def run(self, jobs, say):
        """Works in `jobs` processes (or groups of ranks) at once.

        Args:
            jobs: Int.
            say: As for `work`; called from several threads.

        Raises:
            WorkerFailed: A run raised or its process died; the first of them.
        """
        pending = sum(len(group.pending()) for group in self.groups)
        jobs = min(jobs, pending)
        if not jobs:
            return
        with ThreadPoolExecutor(jobs) as pool, contextlib.ExitStack() as stack:
            workers = []
            for number in range(jobs):
                workers.append(Worker(self.folder, number, self.settings.ranks))
                stack.callback(workers[-1].close)
            # Called first: a thread whose worker is ended must not take another run.
            stack.callback(self._stop)
            threads = [pool.submit(self.work, worker.train, say) for worker in workers]
            for done in as_completed(threads):
                done.result()

    def _stop(self):
        with self._news:
            self._stopping = True
            self._news.notify_all()

    def _append(self, row):
        with open(self.folder / "results.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _who(cell):
    """What names a cell in a row."""
    contender = cell.contender
    return {
        "optimizer": contender.rule,
        "batch": cell.batch,
        "contender": contender.label,
        "samples": contender.samples,
    }


def _read(file):
    """The rows of a file. What a kill left of a last line is cut off."""
    if not file.exists():
        return []
    whole = file.read_bytes()
    kept = whole[: whole.rfind(b"\n") + 1]
    if kept != whole:
        with open(file, "r+b") as cut:
            cut.truncate(len(kept))
    return [json.loads(line) for line in kept.splitlines()]


def _only_user_of(folder):
    """An open file that keeps others from the folder, as long as this process lives."""
    file = open(folder / "lock", "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ValueError(
            f"Another process is working on the study in {folder}. Wait for it, or name "
            "another folder with --out."
        ) from None
    return file
