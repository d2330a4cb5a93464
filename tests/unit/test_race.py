"""What is trained next, and what is chosen: on losses that are made up."""

import itertools
import math
import random

import pytest

from gsnr_tf.compare import race
from gsnr_tf.compare.race import Grid, Plan, Run, Setting

GRID = Grid(race.first_rates(0.01, 5), (0.0, 0.001, 0.003))


def drive(plan, loss, upto=math.inf):
    """Runs what is asked for; the last `State`, all losses, and the stages on the way."""
    known, stages = {}, []
    while True:
        now = race.state(plan, known)
        if not now.runs or len(known) >= upto:
            return now, known, stages
        assert len(now.runs) == len(set(now.runs)) and not known.keys() & set(now.runs)
        stages.append((now.stage, now.runs))
        known.update({run: loss(run) for run in now.runs})


def bowl(rate=0.03, value=0.001, noise=0.01):
    """A loss with its best at a setting, and noise by everything there is."""

    def loss(run):
        setting = run.setting
        far = abs(math.log(setting.learning_rate / rate))
        far += abs(math.log((setting.regularizer + 1e-4) / (value + 1e-4)))
        return far + noise * random.Random(str(run)).gauss(0, 1)

    return loss


def test_rates_are_a_factor_apart_around_the_usual_one():
    assert race.first_rates(0.01, 5) == (0.0025, 0.005, 0.01, 0.02, 0.04)
    assert race.first_rates(1.0, 4) == (0.25, 0.5, 1.0, 2.0)


def test_the_stages_of_a_race():
    plan = Plan(2, GRID)
    end, _known, stages = drive(plan, bowl(0.01))
    names = [stage for stage, _ in stages]
    assert names == ["first third", "grid", "few", "all"]
    thirds, grid, few, all_seeds = (runs for _, runs in stages)
    assert len(thirds) == 2 * 15 * 2 and not any(run.whole for run in thirds)
    # The better half of the settings, of each contender.
    assert len(grid) == 2 * 8 * 2 and all(run.whole for run in grid)
    assert {run.seed for run in few} == {3, 4} and len(few) == 2 * 4 * 2
    assert [(r.contender, r.seed) for r in all_seeds] == [
        (c, seed) for c in (0, 1) for seed in (5, 6, 7, 8)
    ]
    assert end.chosen == [Setting(0.01, 0.001)] * 2 and end.unstable is None


def test_every_contender_has_as_many_trials():
    """Also where the best of one lies at the end of the grid, and of the other does not."""
    ours, theirs = bowl(0.01, 0.001), bowl(0.3, 0.0)

    def loss(run):
        return (theirs if run.contender else ours)(run)

    end, known, _ = drive(Plan(2, GRID), loss)
    tried = [{r.setting for r in known if r.contender == c and not r.whole} for c in (0, 1)]
    assert tried[0] == tried[1] == set(end.grid.settings())
    full = [sum(r.whole for r in known if r.contender == c) for c in (0, 1)]
    assert end.chosen == [Setting(0.01, 0.001), Setting(0.32, 0.0)]
    # Which halves go on is each contender's own; how many is not, until a grid grows.
    assert abs(full[0] - full[1]) <= 2 * race.GRID_SEEDS * race.GROWTHS


@pytest.mark.parametrize("best", [0.3, 0.0004])
def test_the_grid_grows_until_the_best_lies_within(best):
    end, _, _stages = drive(Plan(1, GRID), bowl(best))
    rates = end.grid.rates
    chosen = end.chosen[0].learning_rate
    assert rates[0] < chosen < rates[-1]
    assert 1 / race.STRIDE < chosen / best < race.STRIDE
    assert race.on_the_edge(Plan(1, GRID), end, 0) == []
    assert len({b / a for a, b in itertools.pairwise(rates)}) == 1


def test_values_grow_upwards_but_not_beyond_nothing_or_the_limit():
    end, _, _ = drive(Plan(1, GRID), bowl(0.01, 0.03))
    assert end.grid.values == (0.0, 0.001, 0.003, 0.009, 0.027, 0.081)
    end, _, _ = drive(Plan(1, GRID), bowl(0.01, 0.0))
    assert end.grid.values == GRID.values and end.chosen[0].regularizer == 0.0
    plan = Plan(1, GRID, limit=0.01)
    end, _, _ = drive(plan, bowl(0.01, 0.03))
    assert end.grid.values[-1] == 0.009
    assert race.on_the_edge(plan, end, 0) == ["regularizer"]
    kept = Grid(GRID.rates, (0.1, 0.2))
    assert race.grown(Plan(1, kept), kept, [Setting(0.01, 0.1)]).values == (0.05, 0.1, 0.2)


def test_the_best_few_of_base_run_on_all_seeds():
    """And of the others only the one that was chosen."""
    plan = Plan(2, GRID, base=0)
    end, known, _ = drive(plan, bowl(0.01))
    everywhere = [
        {run.setting for run in known if run.whole and (run.contender, run.seed) == (c, plan.seeds)}
        for c in (0, 1)
    ]
    assert everywhere[0] == {end.chosen[0], *end.beside} and len(everywhere[0]) == race.FEW
    assert everywhere[1] == {end.chosen[1]} and end.chosen[0] not in end.beside
    without, fewer, _ = drive(Plan(2, GRID), bowl(0.01))
    assert without.beside == [] and len(known) - len(fewer) == (race.FEW - 1) * 4
    assert without.chosen == end.chosen


def test_base_chooses_by_all_seeds():
    """What was best on the first four seeds by chance is not what it is judged by."""
    plan = Plan(2, GRID, base=0)

    def lucky_at_first(run):
        luck = -0.8 if run.setting == Setting(0.02, 0.001) and run.seed <= race.FEW_SEEDS else 0.0
        return bowl(0.01)(run) + luck

    end, _, stages = drive(plan, lucky_at_first)
    assert end.chosen == [Setting(0.01, 0.001), Setting(0.02, 0.001)]
    assert Setting(0.02, 0.001) in end.beside and Setting(0.01, 0.001) not in end.beside
    assert {r.setting for r in stages[-1][1] if r.contender == 0} == {end.chosen[0], *end.beside}


def test_a_grid_may_be_told_not_to_grow():
    plan = Plan(1, GRID, growths=0)
    end, _, _ = drive(plan, bowl(0.3))
    assert end.stage == "done" and end.grid == GRID
    assert end.chosen[0].learning_rate == GRID.rates[-1]
    assert race.on_the_edge(plan, end, 0) == ["learning rate"]


def test_growing_ends_and_is_told():
    plan = Plan(1, GRID)
    end, _, _ = drive(plan, lambda run: -run.setting.learning_rate)
    assert len(end.grid.rates) == 5 + race.GROWTHS
    assert race.on_the_edge(plan, end, 0) == ["learning rate"]


def test_without_a_regularizer_rates_alone_are_tuned():
    plan = Plan(1, Grid(GRID.rates, (None,)))
    end, known, _ = drive(plan, lambda run: abs(math.log(run.setting.learning_rate / 0.01)))
    assert end.chosen == [Setting(0.01, None)] and end.grid == plan.grid
    assert sum(run.whole for run in known) == 3 * 2 + 3 * 2 + 4


def test_fewer_seeds_than_the_stages_have():
    for seeds in (1, 3):
        end, known, stages = drive(Plan(1, GRID, seeds=seeds), bowl(0.01))
        assert end.chosen == [Setting(0.01, 0.001)]
        assert {run.seed for run in known} == set(range(1, seeds + 1))
        assert stages[-1][0] == ("grid" if seeds == 1 else "few")


def test_a_third_stops_those_that_are_behind_then():
    """A setting that starts slowly is given up, however good it would have been."""
    slow = Setting(0.02, 0.003)

    def loss(run):
        if run.setting == slow:
            return -9.0 if run.whole else 9.0
        return bowl(0.01)(run)

    end, known, _ = drive(Plan(1, GRID), loss)
    assert not any(run.whole for run in known if run.setting == slow)
    assert end.chosen == [Setting(0.01, 0.001)]


# ---- rates at which training is a matter of luck ------------------------------------


def lucky(run, rate=0.02, contender=0):
    """At that rate, and above, seeds of one contender are far better or far worse."""
    good = bowl(0.01)(run)
    if run.setting.learning_rate >= rate and run.contender == contender:
        return good + (-4.0 if run.seed % 2 else 3.0)
    return good


def test_a_rate_whose_seeds_spread_is_dropped_for_all_with_the_higher_ones():
    end, _known, _ = drive(Plan(2, GRID), lucky)
    assert end.unstable == 0.02
    assert [setting.learning_rate for setting in end.chosen] == [0.01, 0.01]
    # The other contender's own seeds did not spread there.
    alone, _, _ = drive(Plan(1, GRID), lambda run: lucky(run, contender=5))
    assert alone.unstable is None


@pytest.mark.parametrize("best, dropped", [(0.01, 0.02), (0.09, None)])
def test_what_more_seeds_show_is_dropped_for_all_or_for_none(best, dropped):
    """Seeds 3 and 4 of the first contender spread at 0.02. Where the second one has no
    other rate among its best few, both keep it."""

    def loss(run):
        if run.contender == 1:
            return bowl(best)(run)
        far = run.setting.learning_rate >= 0.02 and run.seed in (3, 4)
        return bowl(0.015)(run) + far * (40.0 if run.seed == 3 else -45.0)

    end, _, _ = drive(Plan(2, GRID), loss)
    assert end.unstable == dropped
    rates = [setting.learning_rate for setting in end.chosen]
    assert all(rate < 0.02 for rate in rates) if dropped else all(r >= 0.02 for r in rates)


def test_a_small_rate_whose_seeds_spread_is_not_unstable():
    """They have not arrived yet, where a higher rate is steady."""

    def loss(run):
        late = run.setting.learning_rate == 0.005
        return bowl(0.01)(run) + late * (-4.0 if run.seed % 2 else 3.0)

    end, _, _ = drive(Plan(2, GRID), loss)
    assert end.unstable is None


def test_seeds_of_which_some_diverge_drop_a_rate():
    def loss(run):
        if run.setting.learning_rate >= 0.04 and run.seed == 2:
            return math.inf
        return bowl(0.05)(run)

    end, _known, _ = drive(Plan(1, GRID), loss)
    assert end.unstable == 0.04
    assert end.chosen[0].learning_rate == 0.02
    # No grid grows towards rates that are dropped, and the end it has is no caution.
    assert end.grid.rates[-1] == 0.04
    assert race.on_the_edge(Plan(1, GRID), end, 0) == []


@pytest.mark.parametrize("early", [True, False])
def test_where_all_seeds_diverge_a_rate_is_bad_but_not_unstable(early):
    def loss(run):
        wild = run.contender == 1 and run.setting.learning_rate > 0.02
        return math.inf if wild and (early or run.whole) else bowl(0.03)(run)

    end, _, _ = drive(Plan(2, GRID), loss)
    assert end.unstable is None
    assert end.chosen[0].learning_rate == 0.04 and end.chosen[1].learning_rate == 0.02


def test_what_diverges_in_its_first_third_is_not_run_on():
    def loss(run):
        return math.inf if run.setting.learning_rate > 0.003 else 1.0

    end, known, _ = drive(Plan(1, GRID), loss)
    for run, found in known.items():
        assert not run.whole or found < math.inf
    # Nothing else trains: the grid grows downwards.
    assert end.grid.rates[0] < 0.0025


def test_where_nothing_trains_a_race_ends_all_the_same():
    end, _, _ = drive(Plan(2, GRID), lambda run: math.inf)
    assert end.stage == "done" and len(end.chosen) == 2


# ---- going on ------------------------------------------------------------------------


def test_a_race_that_was_stopped_goes_on_with_what_it_lacked():
    plan, loss = Plan(2, GRID), lambda run: lucky(run, rate=0.04)
    end, known, _ = drive(plan, loss)
    order = random.Random(3)
    kept = {run: value for run, value in known.items() if order.random() < 0.7}
    again = dict(kept)
    while race.state(plan, again).runs:
        for run in race.state(plan, again).runs:
            assert run not in again
            again[run] = loss(run)
    assert race.state(plan, again) == end and again == known


def test_the_work_left_falls_to_nothing():
    """It is exact from the moment on that the grid has stopped to grow."""
    plan = Plan(2, GRID)
    known, left = {}, []
    while (now := race.state(plan, known)).runs:
        left.append(race.cost_left(plan, known, race.state(plan, known)))
        run = now.runs[0]
        spent = race.cost(run, known)
        known[run] = bowl(0.01)(run)
        assert race.cost_left(plan, known, race.state(plan, known)) == pytest.approx(
            left[-1] - spent
        )
    assert race.cost_left(plan, known, race.state(plan, known)) == 0
    assert left[0] == pytest.approx(2 * (15 * 2 / 3 + 8 * 2 * 2 / 3 + 4 * 2 + 4))
    assert race.cost(Run(0, GRID.settings()[0], 1, False), {}) == pytest.approx(1 / 3)
