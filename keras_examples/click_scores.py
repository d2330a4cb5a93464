"""How good chances of a click are, beside the AUC of all rows."""

import numpy as np
from movielens import auc

BINS = 20


def log_loss(clicks, chances):
    """Mean of −log of the chance that was given to what happened, in nats.

    Args:
        clicks: `[rows]`, 0 or 1.
        chances: `[rows]`, between 0 and 1.
    """
    given = np.where(clicks > 0, chances, 1 - chances.astype("float64"))
    return float(-np.log(np.clip(given, 1e-7, 1)).mean())


def calibration_error(clicks, chances):
    """By how much chances and clicks differ: mean over 20 equal parts, by chance, of
    |mean chance − share of clicks|. Of a perfect model it is not 0 but what chance leaves,
    of the order of 1/√(rows of a part).

    Args:
        clicks, chances: As for `log_loss`.
    """
    parts = np.array_split(np.argsort(chances, kind="stable"), BINS)
    off = [abs(chances[part].mean() - clicks[part].mean()) for part in parts if len(part)]
    sizes = [len(part) for part in parts if len(part)]
    return float(np.average(off, weights=sizes))


def auc_by_group(clicks, chances, groups):
    """Mean over groups, such as users, of the AUC among the rows of each.

    Weighted by rows; groups of which all rows are clicks, or none, have no AUC and no part.
    What ranks for a user alone counts, not who clicks more than others.

    Args:
        clicks, chances: As for `log_loss`.
        groups: `[rows]`, whose row each is.

    Returns:
        Float, `nan` if no group has an AUC.
    """
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order])) + 1
    total, weight = 0.0, 0
    for rows in np.split(order, starts):
        own = clicks[rows]
        if 0 < own.sum() < len(own):
            total += len(rows) * auc(own, chances[rows])
            weight += len(rows)
    return total / weight if weight else float("nan")
