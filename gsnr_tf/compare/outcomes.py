"""What the runs of a study amount to: outcomes, and comparisons of two."""

import math
from dataclasses import dataclass, field, replace
from statistics import mean, median

import numpy as np

from gsnr_tf.compare import paired, race

LEVEL = 0.05


@dataclass(frozen=True)
class Outcome:
    """One contender at one batch size.

    Attributes:
        optimizer, batch, contender, samples: Who it is.
        rates: Dict from each learning rate tried at the chosen value of the regularizer to
            its mean validation score over the seeds of the grid; `None` where it was
            stopped early, or diverged.
        learning_rate, regularizer: The setting that was chosen.
        edges: List, which of the two lie at the end of what was tried.
        runs: The rows of the runs with the chosen setting, one for each seed.
        higher_is_better: As the task says.
        target: As the task says, or `None`.
        beside: Tuple of `Outcome`s at the settings that it might have chosen as well; of base
            alone.
    """

    optimizer: str
    batch: int
    contender: str
    samples: int
    rates: dict
    learning_rate: float
    regularizer: float | None
    edges: list
    runs: tuple
    higher_is_better: bool
    target: float | None
    beside: tuple = ()

    @property
    def is_gsnr(self):
        return self.contender not in ("base", "control")

    @property
    def diverged(self):
        """How many of the runs diverged."""
        return sum(run["diverged"] for run in self.runs)

    @property
    def by_seed(self):
        """Dict from each seed that did not diverge to its run."""
        return {run["seed"]: run for run in self.runs if not run["diverged"]}

    @property
    def scores(self):
        """Test scores of the seeds that did not diverge."""
        return [run["test"] for run in self.by_seed.values()]

    @property
    def gaps(self):
        """By how much the score is better on training rows than on test rows."""
        sign = 1 if self.higher_is_better else -1
        return [sign * (run["train"] - run["test"]) for run in self.by_seed.values()]

    @property
    def noise(self):
        """Mean share of noise in the squared mean gradient over the second half of the
        updates and over seeds, or `None` where the optimizer does not see samples."""
        halves = [run["history"][len(run["history"]) // 2 :] for run in self.by_seed.values()]
        shares = [row.get("noise") for half in halves for row in half]
        return mean(shares) if shares and None not in shares else None

    @property
    def validation(self):
        """Mean validation score; `None` if a seed diverged."""
        return None if self.diverged else mean(run["validation"] for run in self.runs)

    def median_to_target(self, what):
        """Median over seeds of updates or seconds to the target.

        A run that misses the target takes infinitely long and stays in the median.

        Args:
            what: "update" or "seconds".

        Returns:
            A number, perhaps `inf`; `None` without a target.
        """
        if self.target is None or not self.runs:
            return None
        return median(self._to_target(run, what) for run in self.runs)

    def _to_target(self, run, what):
        for row in run["history"]:
            ahead = row["validation"] - self.target
            if (ahead if self.higher_is_better else -ahead) >= 0:
                return row[what]
        return math.inf


@dataclass(frozen=True)
class Comparison:
    """A contender against another, over the seeds that both have.

    Attributes:
        ours, theirs: `Outcome`s.
        found: `paired.Difference` of test scores, above 0 where ours are better; `None` of
            fewer than two seeds.
        named: Whether the study named it in advance.
        p: Float, Holm's p-value among those that were named, else the test's own.
        rows: 95 % interval of the mean difference by test rows, or `None`.
        measures: Dict from each of the task's measures that is finite in all runs to the
            `paired.Difference` of it, ours − theirs.
        beside: List of pairs: theirs at a setting that they might have chosen as well, and
            the `paired.Difference` to that.
    """

    ours: Outcome
    theirs: Outcome
    found: paired.Difference | None
    named: bool = False
    p: float | None = None
    rows: tuple | None = None
    measures: dict = field(default_factory=dict)
    beside: list = field(default_factory=list)

    @property
    def least(self):
        """The pair of `beside` with the least lead, or `None`."""
        return min(self.beside, key=lambda pair: pair[1].mean, default=None)

    @property
    def result(self):
        """ "ahead" or "behind" if the p-value is below 5 %, else "level", which is no proof
        that they are equal; `None` with too few seeds to say. A contender of which a seed
        diverged is behind one that always trained. Who is ahead of base at the setting that
        base chose, but not at all those that it might have chosen, is level: an interval over
        seeds says nothing of how a choice fell.
        """
        if bool(self.ours.diverged) != bool(self.theirs.diverged):
            return "behind" if self.ours.diverged else "ahead"
        if self.found is None:
            return None
        if self.p >= LEVEL:
            return "level"
        if self.found.mean < 0:
            return "behind"
        sure = all(other.mean > 0 and other.p < LEVEL for _, other in self.beside)
        return "ahead" if sure else "level"


def outcomes(study, task):
    """`Outcome`s of the races that are over, in the order of the cells."""
    found = []
    for group in study.groups:
        state = group.state()
        if state.stage != "done":
            continue
        for number, cell in enumerate(group.cells):
            one = _outcome(group, state, number, cell, state.chosen[number], task)
            if number == group.plan.base:
                others = [_outcome(group, state, number, cell, s, task) for s in state.beside]
                one = replace(one, beside=tuple(others))
            found.append(one)
    return found


def _outcome(group, state, number, cell, setting, task):
    runs = [
        row
        for run, row in group.rows.items()
        # One that diverged in its first third was not run to the end.
        if (run.contender, run.setting) == (number, setting) and (run.whole or row["diverged"])
    ]
    return Outcome(
        optimizer=cell.contender.rule,
        batch=cell.batch,
        contender=cell.contender.label,
        samples=cell.contender.samples,
        rates=_rates(group, state, number),
        learning_rate=setting.learning_rate,
        regularizer=setting.regularizer,
        edges=race.on_the_edge(group.plan, state, number),
        runs=tuple(sorted(runs, key=lambda row: row["seed"])),
        higher_is_better=task.higher_is_better,
        target=task.target,
    )


def _rates(group, state, number):
    value = state.chosen[number].regularizer
    found = {}
    for rate in state.grid.rates:
        setting = race.Setting(rate, value)
        keys = [race.Run(number, setting, s, True) for s in group.plan.grid_seeds]
        rows = [group.rows.get(key) for key in keys]
        whole = all(row is not None and not row["diverged"] for row in rows)
        found[rate] = mean(row["validation"] for row in rows) if whole else None
    return found


def compared(ours, theirs, folder=None):
    """The `Comparison` of two outcomes, seed by seed.

    Args:
        ours, theirs: `Outcome`s of one task.
        folder: `Path` of the run folder, if scores of single rows may be there.
    """
    one, other = ours.by_seed, theirs.by_seed
    seeds = sorted(one.keys() & other.keys())
    sign = 1 if ours.higher_is_better else -1
    found = _difference(ours, theirs)
    rows = None
    if folder and seeds and all("rows" in run[s] for run in (one, other) for s in seeds):
        each = [row_scores(folder, one[s]) - row_scores(folder, other[s]) for s in seeds]
        rows = paired.rows_interval(sign * np.mean(each, axis=0))
    beside = [(at, _difference(ours, at)) for at in theirs.beside]
    return Comparison(
        ours,
        theirs,
        found,
        p=found and found.p,
        rows=rows,
        measures=_measures([one[s] for s in seeds], [other[s] for s in seeds]),
        beside=[(at, difference) for at, difference in beside if difference is not None],
    )


def _difference(ours, theirs):
    """The `paired.Difference` of test scores, above 0 where ours are better."""
    one, other = ours.by_seed, theirs.by_seed
    sign = 1 if ours.higher_is_better else -1
    seeds = sorted(one.keys() & other.keys())
    return paired.difference([sign * (one[s]["test"] - other[s]["test"]) for s in seeds])


def measure_names(runs):
    """The measures that all of these runs have, a list."""
    each = [run.get("measures", {}) for run in runs]
    return [name for name in each[0] if all(name in other for other in each)] if each else []


def _measures(ours, theirs):
    found = {}
    for name in measure_names([*ours, *theirs]) if len(ours) > 1 else ():
        pairs = [(a["measures"][name], b["measures"][name]) for a, b in zip(ours, theirs)]
        if np.isfinite(pairs).all():
            found[name] = paired.difference([a - b for a, b in pairs])
    return found


def row_scores(folder, run):
    """Scores of single test rows of a run, float64 `[test rows]`."""
    return np.load(folder / run["rows"]).astype("float64")


def comparisons(found, named=(), folder=None):
    """All `Comparison`s of a study with base: forms, then the control.

    Args:
        found: List of `Outcome`.
        named: Those named in advance, `(optimizer, batch, contender, samples)` each.
        folder: As for `compared`.
    """
    pairs = [(o, rival(found, o)) for o in found]
    each = [compared(o, r, folder) for o, r in pairs if r is not None and r is not o]
    each = [replace(c, named=_key(c.ours) in set(named)) for c in each]
    tested = [c for c in each if c.named and c.found is not None]
    adjusted = dict(zip(map(id, tested), paired.holm([c.found.p for c in tested])))
    each = [replace(c, p=adjusted.get(id(c), c.p)) for c in each]
    return sorted(each, key=lambda c: not c.ours.is_gsnr)


def _key(outcome):
    return outcome.optimizer, outcome.batch, outcome.contender, outcome.samples


def strongest(found, outcome):
    """The base with the best validation score at a batch, of any optimizer, or `None`.

    Args:
        found: List of `Outcome`.
        outcome: The one at whose batch.
    """
    bases = [
        other
        for other in found
        if other.contender == "base" and other.batch == outcome.batch and not other.diverged
    ]
    sign = 1 if outcome.higher_is_better else -1
    return max(bases, key=lambda base: sign * base.validation, default=None)


def against_the_strongest(found, folder=None):
    """`Comparison`s of the forms with the `strongest` base, where that is another than
    their own; all exploratory.

    Args:
        found: List of `Outcome`.
        folder: As for `compared`.
    """
    pairs = [(o, strongest(found, o)) for o in found if o.is_gsnr]
    return [compared(o, s, folder) for o, s in pairs if s not in (None, rival(found, o))]


def rival(found, outcome):
    """What a form is compared with: base, or the control where Keras has no base."""
    peers = {
        other.contender: other
        for other in found
        if (other.optimizer, other.batch) == (outcome.optimizer, outcome.batch)
    }
    return peers.get("base", peers.get("control"))


def reference(own):
    """What the outcomes of one optimizer are measured by: base at the smallest batch, or the
    control where Keras has no base; `None` if there is neither."""
    return rival(own, min(own, key=lambda outcome: outcome.batch))


def reach(own, yardstick):
    """The `Comparison` of the largest batch at which one contender is not behind, or `None`.

    Args:
        own: `Outcome`s of the contender.
        yardstick: The `Outcome` to be not behind of.
    """
    each = [compared(outcome, yardstick) for outcome in own]
    good = [c for c in each if c.ours is yardstick or c.result in ("ahead", "level")]
    return max(good, key=lambda c: c.ours.batch, default=None)
