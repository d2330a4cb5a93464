"""Statistics of paired runs: against other formulas, and by simulation."""

import itertools

import numpy as np
import pytest
from scipy import stats

from gsnr_tf.compare import paired

RNG = np.random.default_rng(0)


def test_the_interval_is_that_of_a_t_test():
    values = RNG.normal(0.3, 1.0, size=9)
    found, known = paired.difference(values), stats.ttest_1samp(values, 0)
    interval = known.confidence_interval(0.95)
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p == pytest.approx(known.pvalue) and found.seeds == 9


def test_one_seed_tells_nothing_and_equal_differences_all():
    assert paired.difference([0.3]) is None and paired.difference([]) is None
    same = paired.difference([0.25, 0.25, 0.25])
    assert (same.low, same.mean, same.high, same.p) == (0.25, 0.25, 0.25, 0)
    assert paired.difference([0.0, 0.0]).p == 1


@pytest.mark.parametrize("size", [3, 8])
def test_sign_flips_are_counted_exactly(size):
    values = RNG.normal(0.5, 1.0, size=size)
    means = [abs(np.dot(signs, values)) for signs in itertools.product([-1, 1], repeat=size)]
    expected = np.mean(np.array(means) >= abs(values.sum()) * (1 - 1e-12))
    assert paired.sign_flip(values) == pytest.approx(expected)
    assert paired.sign_flip(np.abs(values)) == pytest.approx(2 / 2**size)


def test_many_seeds_are_flipped_at_random_but_the_same_each_time():
    values = RNG.normal(0.3, 1.0, size=24)
    found = paired.sign_flip(values)
    assert found == paired.sign_flip(values)
    assert found == pytest.approx(paired.difference(values).p, abs=0.05)


def test_holm_by_hand():
    assert paired.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert paired.holm([0.5, 0.9]) == [1.0, 1.0]
    assert paired.holm([0.02]) == [0.02] and paired.holm([]) == []


def test_holm_keeps_the_error_of_all_tests_together():
    """Without any difference six tests say "different" about once in 20 studies."""
    p_values = np.random.default_rng(1).uniform(size=[4000, 6])
    wrong = np.mean([min(paired.holm(list(row))) < 0.05 for row in p_values])
    # Binomial: five deviations are 0.017.
    assert 0.033 < wrong < 0.067


def test_the_bootstrap_over_rows_has_the_error_of_a_mean():
    values = RNG.normal(0.2, 2.0, size=3000)
    low, high = paired.rows_interval(values)
    half = 1.96 * 2.0 / np.sqrt(3000)
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert low < values.mean() < high
    assert paired.rows_interval(values) == (low, high)


@pytest.mark.parametrize(
    "seeds, correlation, expected",
    [
        *((3, 0.5, 0.27), (5, 0.5, 0.61), (8, 0.5, 0.90), (12, 0.5, 0.99)),
        *((3, 0.8, 0.51), (5, 0.8, 0.93), (8, 0.8, 1.0), (12, 0.8, 1.0)),
    ],
)
def test_the_power_of_a_comparison(seeds, correlation, expected):
    """A true lead of .002 at a seed spread of .0015: more seeds see it more often.

    The chances are those of an independent simulation.
    """
    rng, runs = np.random.default_rng(seeds), 1500
    shared = rng.normal(size=[runs, 1, seeds])
    own = rng.normal(size=[runs, 2, seeds])
    noise = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own
    base, ours = np.moveaxis(0.0015 * noise, 1, 0)
    t = stats.ttest_rel(ours + 0.002, base, axis=1)
    ahead = (t.pvalue < 0.05) & (t.statistic > 0)
    # Ours for some of them: the interval leaves out 0 where the test says so.
    for index in range(40):
        found = paired.difference(ours[index] + 0.002 - base[index])
        assert (found.low > 0) == ahead[index]
    # Three deviations of 1500 trials are 0.039 at a chance of one half.
    assert ahead.mean() == pytest.approx(expected, abs=0.04)
