"""What is worth knowing of a step for each variable: sums, and counts by size.

Sums and counts add up: over the elements of a variable, over slices, over variables.
"""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

# Four bins a decade; r of pure noise from k samples is about 1/k. What is smaller than
# the first edge, or 0, is counted before it, what is larger or infinite after the last.
R_EDGES = np.logspace(-8, 4, 49)
R_BINS = len(R_EDGES) + 1
MULTIPLIER_BINS = 20

# Sums over the elements of a variable, but for the last. An element is informative here
# when ḡ is not 0: elsewhere no multiplier moves anything.
FIELDS = (
    "r",  # what the estimator gives, r or the share of signal, where it is finite
    "finite",  # elements where that is finite and mean or variance not 0
    "mean_sq",  # ḡ²
    "variance",  # σ²
    "informative",  # informative elements
    "multiplier",  # the multiplier, of informative elements
    "at_floor",  # informative elements whose multiplier is γ
    "at_ceiling",  # informative elements whose multiplier is the ceiling
    "theta_sq",  # θ² before the step
    "u_sq",  # u², the direction of the step before trust ratio and learning rate
    "phi",  # the trust ratio itself
)


class Summary(NamedTuple):
    """One update, for each variable.

    Attributes:
        sums: `[variables, len(FIELDS)]`.
        r_counts: `[variables, R_BINS]`: informative elements by r.
        multiplier_counts: `[variables, MULTIPLIER_BINS]`: the same by multiplier.
    """

    sums: np.ndarray
    r_counts: np.ndarray
    multiplier_counts: np.ndarray

    def field(self, name):
        """The sums `[variables]` of one of `FIELDS`."""
        return self.sums[:, FIELDS.index(name)]


def multiplier_terms(r, known, gamma, ceiling):
    """What is summed for "multiplier", "at_floor" and "at_ceiling".

    Args:
        r: Tensor, the multiplier.
        known: Tensor of the same shape, 1 for informative elements, else 0.
        gamma, ceiling: Python floats, the bounds of the multiplier.
    """
    at_floor = known * tf.cast(r <= gamma, r.dtype)
    at_ceiling = known * tf.cast(r >= ceiling, r.dtype)
    return known * r, at_floor, at_ceiling


def r_bin(r):
    """Index of the bin of each r, an int32 tensor in [0, R_BINS)."""
    low, high = np.log10(R_EDGES[[0, -1]])
    # 0 and infinity have logarithms too, on their side of everything else.
    place = (tf.math.log(r) / math.log(10.0) - low) * ((R_BINS - 2) / (high - low))
    return 1 + tf.cast(tf.floor(tf.clip_by_value(place, -1.0, R_BINS - 2.0)), tf.int32)


def multiplier_edges(gamma, ceiling):
    """Edges `[MULTIPLIER_BINS + 1]` of the counts by multiplier, evenly in logarithm."""
    return np.geomspace(gamma, ceiling, MULTIPLIER_BINS + 1)


def multiplier_bin(r, gamma, ceiling):
    """Index of the bin of each multiplier, an int32 tensor in [0, MULTIPLIER_BINS)."""
    decades = math.log(ceiling / gamma) or 1.0
    place = tf.math.log(r / gamma) * (MULTIPLIER_BINS / decades)
    return tf.cast(tf.clip_by_value(place, 0.0, MULTIPLIER_BINS - 1.0), tf.int32)


def counts_by_bin(bins, weights, variable_of, variables, number):
    """How many of the elements of each variable are in each bin.

    Args:
        bins: int32 tensor `[n]`, the bin of each element.
        weights: Tensor `[n]`, 1 for elements that count.
        variable_of: int32 tensor `[n]`, the index of the variable of each element.
        variables, number: Ints, how many variables and bins there are.

    Returns:
        Tensor `[variables, number]`.
    """
    counts = tf.math.unsorted_segment_sum(weights, variable_of * number + bins, variables * number)
    return tf.reshape(counts, [variables, number])
