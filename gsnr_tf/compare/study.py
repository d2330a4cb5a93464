"""A study: every contender at every batch searches alike, then runs with other seeds.

All that is known is in the run folder's `trials.db`, Optuna's storage: one study for
each cell's search and one for its runs with other seeds. `results.jsonl` is written
from it.
"""

import contextlib
import fcntl
import itertools
import json
import math
import queue
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed

import optuna
from optuna.distributions import IntDistribution
from optuna.trial import TrialState, create_trial

from gsnr_tf.compare import search
from gsnr_tf.compare.contenders import RULES
from gsnr_tf.compare.workers import Worker

# The runs of the search have this seed, those after it 1, 2, …
SEARCH_SEED = 0
# So many of the best rates are run with the other seeds. The best mean validation score
# is the one whose test scores count.
FINALISTS = 2


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
        self._lock = threading.RLock()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'trials.db'}")
        self.cells = settings.cells()
        self._searches = {cell: self._open(cell, "search") for cell in self.cells}
        self._finals = {cell: self._open(cell, "seeds") for cell in self.cells}
        for study in self._searches.values():
            self._give_up_unfinished(study)
        self._export()

    def _open(self, cell, phase):
        return optuna.create_study(
            storage=self._storage,
            study_name=f"{phase}: {cell.name}",
            direction="minimize",
            sampler=search.Climb(self.start_of(cell)),
            load_if_exists=True,
        )

    def start_of(self, cell):
        """The learning rate at which the search of a cell starts."""
        rule = cell.contender.rule
        return self._task.learning_rates.get(rule, RULES[rule].learning_rate)

    @staticmethod
    def _give_up_unfinished(study):
        """Trials that were running when the study was killed will be run anew."""
        for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            study.tell(trial.number, state=TrialState.FAIL)

    # ---- what there is to do, and what is known ---------------------------------

    def tried(self, cell):
        """Dict from learning rate to loss: what the search of a cell found."""
        with self._lock:
            return search.tried(self._searches[cell])

    def finals_left(self, cell):
        """Pairs of rate and seed that a cell, its search done, still needs."""
        rates = search.finalists(self.tried(cell), FINALISTS)
        with self._lock:
            rows = [trial.user_attrs["run"] for trial in _finished(self._finals[cell])]
        done = {(row["learning_rate"], row["seed"]) for row in rows}
        seeds = range(1, self.settings.seeds + 1)
        return [pair for pair in itertools.product(rates, seeds) if pair not in done]

    def runs_left(self, cell):
        """How many runs a cell still needs."""
        searches = self._searches_left(cell)
        if searches:
            return searches + FINALISTS * self.settings.seeds
        return len(self.finals_left(cell))

    def _searches_left(self, cell):
        with self._lock:
            return self.settings.trials - len(_finished(self._searches[cell]))

    def rows(self):
        """All finished runs, each a dict that JSON can hold."""
        with self._lock:
            return [
                trial.user_attrs["run"]
                for cell in self.cells
                for study in (self._searches[cell], self._finals[cell])
                for trial in _finished(study)
            ]

    # ---- doing it -----------------------------------------------------------------

    def run_cell(self, cell, train, say):
        """Searches, then runs the finalists with other seeds: whatever is not done yet.

        Args:
            cell: A `Cell`.
            train: Callable `(index, learning_rate=, seed=, final=)` as `Worker.train`,
                with the index of the cell.
            say: Callable, told each row as it is finished.
        """
        study, index = self._searches[cell], self.cells.index(cell)
        space = {"learning_rate": search.space(self.start_of(cell))}
        for _ in range(self._searches_left(cell)):
            with self._lock:
                trial = study.ask(space)
            rate = trial.params["learning_rate"]
            result = train(index, learning_rate=rate, seed=SEARCH_SEED, final=False)
            row = _row(cell, "search", rate, SEARCH_SEED, result)
            with self._lock:
                trial.set_user_attr("run", row)
                study.tell(trial, self._loss(result))
                self._append(row)
            say(row)
        for rate, seed in self.finals_left(cell):
            result = train(index, learning_rate=rate, seed=seed, final=True)
            row = _row(cell, "final", rate, seed, result)
            with self._lock:
                self._finals[cell].add_trial(
                    create_trial(
                        params={"learning_rate": rate, "seed": seed},
                        distributions={**space, "seed": IntDistribution(1, 10**6)},
                        value=self._loss(result),
                        user_attrs={"run": row},
                    )
                )
                self._append(row)
            say(row)

    def run(self, jobs, say):
        """Works on all cells in `jobs` processes (or groups of ranks) at once.

        Args:
            jobs: Int.
            say: As for `run_cell`; called from several threads.

        Raises:
            WorkerFailed: A run raised or its process died; the first of them.
        """
        left = queue.SimpleQueue()
        for cell in self.cells:
            if self.runs_left(cell):
                left.put(cell)
        jobs = min(jobs, left.qsize())
        stopping = threading.Event()

        def work(worker):
            while not stopping.is_set():
                try:
                    cell = left.get_nowait()
                except queue.Empty:
                    return
                self.run_cell(cell, worker.train, say)

        if not jobs:
            return
        with ThreadPoolExecutor(jobs) as pool, contextlib.ExitStack() as stack:
            workers = []
            for number in range(jobs):
                workers.append(Worker(self.folder, number, self.settings.ranks))
                stack.callback(workers[-1].close)
            # Called first: a thread whose worker is ended must not take another cell.
            stack.callback(stopping.set)
            for done in as_completed([pool.submit(work, worker) for worker in workers]):
                done.result()

    def _loss(self, result):
        """What Optuna minimizes. The worst there is for a run that diverged."""
        if result["diverged"]:
            return math.inf
        sign = -1 if self._task.higher_is_better else 1
        return sign * result["validation"]

    def _append(self, row):
        with open(self.folder / "results.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")

    def _export(self):
        """Writes `results.jsonl` anew: a kill may have come before its last line."""
        lines = [json.dumps(row) + "\n" for row in self.rows()]
        (self.folder / "results.jsonl").write_text("".join(lines))


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


def _finished(study):
    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


def _row(cell, phase, learning_rate, seed, result):
    contender = cell.contender
    return {
        "phase": phase,
        "optimizer": contender.rule,
        "batch": cell.batch,
        "contender": contender.label,
        "samples": contender.samples,
        "learning_rate": learning_rate,
        "seed": seed,
        **result,
    }
