"""What paired runs say of two contenders: intervals and tests, of numbers alone.

The same seed gives both the same weights, split and order of examples. What the seed does
to a score is then in both, and falls out of their difference; what is left tells smaller
leads apart, and more of them the more seeds there are.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
# Up to 16 seeds all signs are tried, beyond that so many at random.
_FLIPS = 2**16
_RESAMPLES = 2000


class Difference(NamedTuple):
    """How far the mean of differences is from 0.

    Attributes:
        mean: Float, in the unit of the score.
        low, high: Floats, the 95 % interval of a paired t-test.
        p: Float, its two-sided p-value.
        flipped_p: Float, that of the sign-flip test, which assumes nothing of the
            distribution but that it is symmetric around 0 if there is no difference.
        seeds: Int, how many there are.
        deviation: Float, their standard deviation.
    """

    mean: float
    low: float
    high: float
    p: float
    flipped_p: float
    seeds: int
    deviation: float


def difference(differences):
    """The `Difference` of paired scores, one difference a seed; `None` of fewer than 2.

    Args:
        differences: Floats.
    """
    values = np.asarray(differences, "float64")
    if len(values) < 2:
        return None
    mean, error = float(values.mean()), float(stats.sem(values))
    flipped = sign_flip(values)
    seeds, deviation = len(values), float(values.std(ddof=1))
    if error == 0:
        # All differences are the same number.
        return Difference(mean, mean, mean, float(mean == 0), flipped, seeds, deviation)
    half = error * float(stats.t.ppf((1 + CONFIDENCE) / 2, seeds - 1))
    p = float(2 * stats.t.sf(abs(mean) / error, seeds - 1))
    return Difference(mean, mean - half, mean + half, p, flipped, seeds, deviation)


def sign_flip(differences):
    """Two-sided p-value of the permutation test that flips the signs of differences.

    Exact up to 16 of them. With n seeds it is never below 2/2ⁿ: 0.008 for eight.

    Args:
        differences: Floats, one a seed.
    """
    values = np.asarray(differences, "float64")
    found = stats.permutation_test(
        (values,),
        lambda sample, axis: np.mean(sample, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=_FLIPS,
        batch=4096,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def holm(p_values):
    """Holm's p-values: of several tests, none then is below .05 by chance with more than 5 %.

    Args:
        p_values: Floats.

    Returns:
        List of floats, at most 1, in the same order.
    """
    order = np.argsort(p_values)
    adjusted, least = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        least = max(least, (len(p_values) - place) * p_values[index])
        adjusted[index] = float(min(least, 1.0))
    return adjusted


def rows_interval(differences):
    """95 % bootstrap interval of a mean over test rows, `(low, high)`.

    The other source of error: which rows happened to be in the test split. Seeds share
    them, so no number of seeds shows it.

    Args:
        differences: `[rows]`, of the scores of each row, means over seeds.
    """
    found = stats.bootstrap(
        (np.asarray(differences, "float64"),),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=100,
        method="percentile",
        confidence_level=CONFIDENCE,
        rng=np.random.default_rng(0),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
