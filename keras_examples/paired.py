"""What runs that share their seeds say of two optimizers: a paired t interval.

The same seed gives both the same weights and the same batches, so that what the seed does to
the score is in both and falls out of their difference. That tells smaller leads apart than to
compare two means by their spreads, and more of them the more seeds there are.
"""

import numpy as np

from gsnr_tf.compare import paired


def difference(ours, base):
    """Mean of `ours` − `base` and its 95 % t interval, which one seed alone does not have.

    Args:
        ours, base: one score a seed, in the same order of seeds.

    Returns:
        A dict of "mean", "low" and "high" (`None` with one seed), floats of the scores' unit.
    """
    if len(ours) != len(base) or len(ours) == 0:
        raise ValueError(f"A score of each seed on both sides. Received: {ours} and {base}.")
    each = np.subtract(ours, base)
    found = paired.difference(each)
    if found is None:
        return {"mean": float(each.mean()), "low": None, "high": None}
    return {"mean": found.mean, "low": found.low, "high": found.high}


def verdict(found):
    """ "ahead" or "behind" where the interval leaves out 0, "level" where it contains it.

    Level is not proof of equality: these seeds cannot tell. `None` without an interval.
    """
    if found["low"] is None:
        return None
    if found["low"] > 0:
        return "ahead"
    return "behind" if found["high"] < 0 else "level"
