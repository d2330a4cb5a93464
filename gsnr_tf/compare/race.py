"""Who is trained next, and which setting is chosen: decisions from losses alone.

A race tunes all contenders of one optimizer at one batch together, so that all try the
same settings with the same seeds:

1. A grid of learning rates × values of a regularizer, on two seeds. After a third of the
   updates the worse half of each contender's settings stops.
2. Where a contender's best lies at an end, the grid grows there, for all.
3. The best few of each contender run on more seeds.
4. The best one of each runs on all seeds. So do the best few of base, which then chooses
   by all seeds.

Everything is a function of what is known, so that a study which was stopped goes on as if
it had not been. Losses are of the validation split: less is better, `inf` is a run that
diverged. Nothing here ever sees a test score.
"""

import math
from statistics import mean, median
from typing import NamedTuple

# A grid of rates is this factor apart.
STRIDE = 2.0
GRID_SEEDS, FEW, FEW_SEEDS = 2, 4, 4
# So often may a grid grow if nobody says otherwise.
GROWTHS = 6
# A rate is unstable if its seeds spread by more than so many times the median spread …
WIDE = 3.0
# … as far as that can be known from fewer: a spread of two seeds is itself a guess.
_FREEDOM = 3


class Setting(NamedTuple):
    """What is tuned: a learning rate and a value of the regularizer, or `None`."""

    learning_rate: float
    regularizer: float | None


class Run(NamedTuple):
    """One training. `whole` is False for its first third, after which it may go on."""

    contender: int
    setting: Setting
    seed: int
    whole: bool


class Grid(NamedTuple):
    """Ascending tuples of learning rates, and of values, `(None,)` without a regularizer."""

    rates: tuple
    values: tuple

    def settings(self):
        """All pairs."""
        return [Setting(rate, value) for rate in self.rates for value in self.values]


class Plan(NamedTuple):
    """How a race begins.

    Attributes:
        contenders: Int, how many there are; they are numbered from 0.
        grid: The first `Grid`.
        seeds: Int, how many the chosen setting runs on.
        limit: Float, beyond which the values of the regularizer do not grow.
        first_seed: Int, the smallest of the seeds.
        growths: Int, so often may the grid grow, by one rate or value at a time.
        base: Int, the contender that others are compared with, or `None`. Its best few all
            run on all seeds: whoever leads it at the one that it chose by a hair, and not
            at the others, leads by chance.
    """

    contenders: int
    grid: Grid
    seeds: int = 8
    limit: float = math.inf
    first_seed: int = 1
    growths: int = GROWTHS
    base: int | None = None

    @property
    def grid_seeds(self):
        """List of the seeds of the grid."""
        return self.all_seeds[:GRID_SEEDS]

    @property
    def few_seeds(self):
        """List of the seeds of the best few."""
        return self.all_seeds[:FEW_SEEDS]

    @property
    def all_seeds(self):
        """List of all seeds."""
        return list(range(self.first_seed, self.first_seed + self.seeds))


class State(NamedTuple):
    """Where a race is.

    Attributes:
        stage: "first third", "grid", "few", "all" or "done".
        runs: List of the `Run`s that this stage still needs, empty when done.
        grid: The `Grid` so far.
        unstable: The smallest learning rate that was dropped, or `None`.
        chosen: List of the `Setting` of each contender, known from stage "all" on.
        beside: List of the `Setting`s that base might have chosen as well.
    """

    stage: str
    runs: list
    grid: Grid
    unstable: float | None
    chosen: list
    beside: list = []


def first_rates(start, number):
    """So many rates around a usual one, ascending, each twice the last."""
    return tuple(start * STRIDE ** (index - number // 2) for index in range(number))


def state(plan, known):
    """The `State` of a race.

    A decision needs all runs of the stage before it, and no other. So it does not depend
    on the order in which runs end, or on where a study was stopped.

    Args:
        plan: The `Plan`.
        known: Dict from `Run` to its loss, a float.
    """
    everyone, grid, unstable = range(plan.contenders), plan.grid, None
    # Pairs of contender and setting that go to the end on the seeds of the grid.
    finished = []

    def lacking(pairs, seeds, whole=True):
        return _missing(known, pairs, seeds, whole)

    for growth in range(plan.growths + 1):
        pairs = [(c, s) for c in everyone for s in grid.settings()]
        if runs := lacking(pairs, plan.grid_seeds, whole=False):
            return State("first third", runs, grid, unstable, [])
        finished += _better_halves(plan, grid, known, everyone)
        if runs := lacking(finished, plan.grid_seeds):
            return State("grid", runs, grid, unstable, [])
        unstable = unstable_rate(plan, pairs, finished, known, plan.grid_seeds)
        without = [c for c in everyone if not _ranked(plan, finished, known, c, unstable)]
        finished += _better_halves(plan, grid, known, without, unstable)
        if runs := lacking(finished, plan.grid_seeds):
            return State("grid", runs, grid, unstable, [])
        ranked = [_ranked(plan, finished, known, c, unstable) for c in everyone]
        larger = grown(plan, grid, [settings[0] for settings in ranked], unstable)
        if larger == grid or growth == plan.growths:
            break
        grid = larger
    few = [(c, setting) for c in everyone for setting in ranked[c][:FEW]]
    if runs := lacking(few, plan.few_seeds):
        return State("few", runs, grid, unstable, [])
    # More seeds may show that a rate is unstable. It is dropped only if all have another:
    # who kept it would be ahead of those who may not.
    later = unstable_rate(plan, few, few, known, plan.few_seeds)
    if not all(_ranked(plan, few, known, c, later, plan.few_seeds) for c in everyone):
        later = None
    ranked = [_ranked(plan, few, known, c, later, plan.few_seeds) for c in everyone]
    chosen = [settings[0] for settings in ranked]
    unstable = min({unstable, later} - {None}, default=None)
    beside = [] if plan.base is None else ranked[plan.base][1:FEW]
    pairs = [*enumerate(chosen), *((plan.base, setting) for setting in beside)]
    if runs := lacking(pairs, plan.all_seeds):
        return State("all", runs, grid, unstable, chosen, beside)
    if plan.base is not None:
        # All its best few have now run on all seeds, so that it chooses by all.
        own = [pair for pair in pairs if pair[0] == plan.base]
        chosen[plan.base], *beside = _ranked(plan, own, known, plan.base, None, plan.all_seeds)
    return State("done", [], grid, unstable, chosen, beside)


def _better_halves(plan, grid, known, contenders, unstable=None):
    return [
        (contender, setting)
        for contender in contenders
        for setting in better_half(plan, grid, known, contender, unstable)
    ]


def _missing(known, pairs, seeds, whole=True):
    runs = dict.fromkeys(Run(*pair, seed, whole) for pair in pairs for seed in seeds)
    # What diverged in its first third need not be run to the end.
    return [r for r in runs if r not in known and not _diverged_early(known, r)]


def _diverged_early(known, run):
    return known.get(run._replace(whole=False)) == math.inf


def _loss(known, run):
    return math.inf if _diverged_early(known, run) else known.get(run)


def _diverged(known, run):
    """Whether a run, or its first third, diverged; `None` if it was not run."""
    ends = [known[r] for r in (run, run._replace(whole=False)) if r in known]
    return math.inf in ends if ends else None


def _mean(known, contender, setting, seeds, whole=True):
    """Mean loss over seeds, or `None` where one has not been run."""
    losses = [_loss(known, Run(contender, setting, seed, whole)) for seed in seeds]
    return None if None in losses else mean(losses)


def better_half(plan, grid, known, contender, unstable=None):
    """The settings of a contender that go on after a third of the updates, ascending.

    Of those at rates that are not dropped, `unstable` and above.
    """

    def after_a_third(setting):
        return _mean(known, contender, setting, plan.grid_seeds, whole=False), setting

    settings = _below(unstable, grid)
    kept = sorted(settings, key=after_a_third)[: math.ceil(len(settings) / 2)]
    return sorted(kept)


def _below(unstable, grid):
    return [s for s in grid.settings() if unstable is None or s.learning_rate < unstable]


def _ranked(plan, pairs, known, contender, unstable, seeds=None):
    """The settings of a contender among pairs, without rates that are dropped, the best
    first; of equals, the smaller rate."""
    seeds = plan.grid_seeds if seeds is None else seeds
    means = {
        setting: _mean(known, contender, setting, seeds)
        for owner, setting in pairs
        if owner == contender and (unstable is None or setting.learning_rate < unstable)
    }
    return sorted(means, key=lambda setting: (means[setting], setting))


def grown(plan, grid, best, unstable=None):
    """The grid with one more rate or value wherever some contender's best is the last.

    Args:
        plan: The `Plan`.
        grid: The `Grid`.
        best: List of the `Setting` that is best so far, of each contender.
        unstable: The smallest rate that was dropped, or `None`.
    """
    rates, values = grid
    at = [setting.learning_rate for setting in best]
    lower = (rates[0] / STRIDE,) if rates[0] in at else ()
    higher = (rates[-1] * STRIDE,) if rates[-1] in at else ()
    if unstable is not None:
        higher = ()
    return Grid(lower + rates + higher, _grown_values(plan, values, best))


def _grown_values(plan, values, best):
    at = [setting.regularizer for setting in best]
    if len(values) < 2:
        return values
    # 0 is an end beyond which there is nothing.
    if values[0] > 0 and values[0] in at:
        values = (_rounded(values[0] ** 2 / values[1]), *values)
    if values[-1] in at:
        factor = values[-1] / values[-2] if values[-2] else 2 * STRIDE
        if values[-1] * factor <= plan.limit:
            values = (*values, _rounded(values[-1] * factor))
    return values


def _rounded(value):
    return float(f"{value:.6g}")


def unstable_rate(plan, begun, finished, known, seeds):
    """The smallest rate at which some contender's seeds spread too far, or `None`.

    The spread of a contender at a rate is the root mean square over all values of the
    regularizer that were run to the end. Too far is more than `WIDE` times the median of
    all contenders and rates, at this rate and all higher ones of the contender: seeds also
    spread where a rate is too small to arrive, below others that are steady. Or it is that
    some seeds diverged and others did not. The smallest rate of the first grid is never
    dropped.

    Args:
        plan: The `Plan`.
        begun, finished: Pairs of contender and `Setting`, run for a third or to the end.
        known: Dict from `Run` to loss.
        seeds: List of ints, those they were run on.
    """
    uneven, squares = set(), {}
    for contender, setting in begun:
        runs = [Run(contender, setting, seed, False) for seed in seeds]
        if len({_diverged(known, run) for run in runs} - {None}) > 1:
            uneven.add(setting.learning_rate)
    for contender, setting in dict.fromkeys(finished):
        runs = [Run(contender, setting, seed, True) for seed in seeds]
        if len({_diverged(known, run) for run in runs} - {None}) > 1:
            uneven.add(setting.learning_rate)
        losses = [_loss(known, run) for run in runs]
        if all(map(math.isfinite, losses)):
            middle = mean(losses)
            far = sum((loss - middle) ** 2 for loss in losses), len(losses) - 1
            squares.setdefault((contender, setting.learning_rate), []).append(far)
    spreads = {}
    for (contender, rate), found in squares.items():
        total, freedom = map(sum, zip(*found))
        if freedom:
            spreads.setdefault(contender, {})[rate] = math.sqrt(total / freedom), freedom
    each = [spread for own in spreads.values() for spread, _ in own.values()]
    limit = WIDE * median(each) if each else 0.0
    wide = set()
    for own in spreads.values():
        for rate in sorted(own, reverse=True):
            spread, freedom = own[rate]
            if spread <= limit:
                break  # Below, what spreads has not arrived yet.
            if freedom >= _FREEDOM:
                wide.add(rate)
    smallest = plan.grid.rates[0]
    return min((rate for rate in wide | uneven if rate > smallest), default=None)


def on_the_edge(plan, found, contender):
    """Which of "learning rate" and `"regularizer"` of a chosen setting lie at an end of the
    grid beyond which nothing was tried; a list.

    Args:
        plan: The `Plan`.
        found: The `State`.
        contender: Int.
    """
    setting = found.chosen[contender]
    larger = grown(plan._replace(limit=math.inf), found.grid, [setting], found.unstable)
    pairs = zip(("learning rate", "regularizer"), found.grid, larger)
    return [name for name, here, there in pairs if here != there]


def cost(run, known):
    """What a run takes, in whole trainings."""
    if not run.whole:
        return 1 / 3
    return 2 / 3 if run._replace(whole=False) in known else 1.0


def cost_left(plan, known, now):
    """Whole trainings that a race still takes if its grid grows no more, a float.

    Args:
        plan: The `Plan`.
        known: Dict from `Run` to loss.
        now: The `State`.
    """
    left = sum(cost(run, known) for run in now.runs)
    half = math.ceil(len(now.grid.settings()) / 2)
    if now.stage == "first third":
        runs = plan.contenders * half * len(plan.grid_seeds)
        done = sum(run.whole and run.seed in plan.grid_seeds for run in known)
        left += max(0, runs - done) * 2 / 3
    if now.stage in ("first third", "grid"):
        more = len(plan.few_seeds) - len(plan.grid_seeds)
        left += plan.contenders * min(FEW, half) * more
    if now.stage not in ("all", "done"):
        beside = 0 if plan.base is None else min(FEW, half) - 1
        left += (plan.contenders + beside) * (plan.seeds - len(plan.few_seeds))
    return left
