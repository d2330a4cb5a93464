"""How much it takes to see a difference: seeds, and users of a live test."""

import numpy as np
from scipy import stats

LEVEL, POWER = 0.05, 0.8
_MOST_SEEDS = 1000


def seeds_needed(mean, deviation):
    """Seeds with which a paired t-test at 5 % sees a difference with 80 %.

    Args:
        mean: Float, the true mean difference.
        deviation: Float, standard deviation of the differences over seeds.

    Returns:
        An int; `None` where 1,000 are not enough.
    """
    if deviation == 0:
        return 2 if mean else None
    effect = abs(mean) / deviation
    for seeds in range(2, _MOST_SEEDS + 1):
        limit = stats.t.ppf(1 - LEVEL / 2, seeds - 1)
        shift = effect * np.sqrt(seeds)
        # On the other side of 0 it is next to never beyond the limit.
        if stats.nct.sf(limit, seeds - 1, shift) >= POWER:
            return seeds
    return None


def groups_needed(scores, groups, difference, split=True):
    """Groups, such as users, that show a difference of a mean over rows with 80 %, at 5 %.

    Rows of a group go together: what varies is what a group adds to the mean.

    Args:
        scores: `[rows]`, scores of single rows of one model; where `split` is False, their
            differences between two models.
        groups: `[rows]`, whose row each is.
        difference: Float, what is to be seen.
        split: Whether each group sees one of two models, as in a live test, so that both
            arms vary; else both models score every group.

    Returns:
        An int: groups in each arm, or in all. `None` for a difference of 0.
    """
    if not difference:
        return None
    _, index = np.unique(groups, return_inverse=True)
    centred = np.asarray(scores, "float64") - np.mean(scores)
    of_groups = np.bincount(index, weights=centred) * (index.max() + 1) / len(centred)
    reach = stats.norm.ppf(1 - LEVEL / 2) + stats.norm.ppf(POWER)
    arms = 2 if split else 1
    return int(np.ceil(arms * of_groups.var(ddof=1) * (reach / difference) ** 2))
