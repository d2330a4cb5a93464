"""What a step shows to those who watch, in updates that are due and in no others."""

import numpy as np
import tensorflow as tf
from tensorflow.python.ops import control_flow_util

from gsnr_tf.sharding.layout import BLOCK
from gsnr_tf.stats import summary

# Counts by size are taken from this many elements, evenly spread over each variable: a
# share is off by less than 1 % then. Sums are taken over all elements.
_COUNTED, _COUNTED_EACH = 2**18, 2**14


def counted_elements(layout, variables):
    """Which elements are counted, and for how many each stands.

    Args:
        layout: `FlatLayout`.
        variables: Int, how many variables there are.

    Returns:
        Arrays of one length: positions in the flat vector, their variables, weights.
    """
    most = min(_COUNTED_EACH, max(_COUNTED // variables, 256))
    places, owners, weights = [], [], []
    for index in range(variables):
        start, size = layout.span(index)
        # An odd stride meets all columns of a matrix, whose width is rarely odd.
        stride = -(-size // most) | 1
        chosen = np.arange(start, start + size, stride)
        places.append(chosen)
        owners.append(np.full(len(chosen), index, "int32"))
        weights.append(np.full(len(chosen), size / max(len(chosen), 1)))
    return tuple(np.concatenate(parts) for parts in (places, owners, weights))


class Watch:
    """The sums of an update, for one worker's blocks of the parameters.

    Args:
        layout: `FlatLayout` of the variables.
        variables: Int, how many there are.
        bounds: Pair `(gamma, ceiling)` of the multiplier.
        blocks: Pair, the first of this worker's blocks and the one after its last.
            Defaults to all.
    """

    def __init__(self, layout, variables, bounds, blocks=None):
        first, last = blocks or (0, len(layout.owner))
        self._bounds = bounds
        self._variables = variables
        self._owner = layout.owner[first:last]
        places, owners, weights = counted_elements(layout, variables)
        mine = (places >= first * BLOCK) & (places < last * BLOCK)
        self._places = (places[mine] - first * BLOCK).astype("int32")
        self._owners = owners[mine]
        self._weights = weights[mine].astype(layout.dtype.as_numpy_dtype)

    def sums(self, mean, variance, r, multiplier, theta, u):
        """Sums over the worker's elements; those of all workers add up.

        Args:
            mean, variance, r, multiplier, theta, u: Tensors `[blocks, BLOCK]`.

        Returns:
            Tensor `[variables, len(FIELDS) - 1 + R_BINS + MULTIPLIER_BINS]`: all that
            `Summary` has but for "phi".
        """
        known = summary.informative(mean, variance)
        finite = known * tf.cast(tf.math.is_finite(r), r.dtype)
        terms = [
            known,
            tf.where(finite > 0, r, tf.zeros_like(r)),
            finite,
            tf.square(mean),
            variance,
            *summary.multiplier_terms(multiplier, known, *self._bounds),
            tf.square(theta),
            tf.square(u),
        ]
        ones = tf.ones([BLOCK], mean.dtype)
        by_block = tf.stack([tf.linalg.matvec(term, ones) for term in terms], axis=1)
        return tf.concat(
            [
                tf.math.unsorted_segment_sum(by_block, self._owner, self._variables),
                *self._counts(known, r, multiplier),
            ],
            axis=1,
        )

    def _counts(self, known, r, multiplier):
        known, r, multiplier = (
            tf.gather(tf.reshape(t, [-1]), self._places) for t in (known, r, multiplier)
        )
        weights = known * self._weights
        for bins, number in (
            (summary.r_bin(r), summary.R_BINS),
            (summary.multiplier_bin(multiplier, *self._bounds), summary.MULTIPLIER_BINS),
        ):
            yield summary.counts_by_bin(
                bins, weights, self._owners, self._variables, number
            )


def summary_of(sums, phi):
    """`Summary` of arrays: what `Watch.sums` gave, added up, and φ `[variables]`."""
    number = len(summary.FIELDS) - 1
    fields = np.concatenate([sums[:, :number], np.reshape(phi, [-1, 1])], axis=1)
    counts = sums[:, number:]
    return summary.Summary(
        fields, counts[:, : summary.R_BINS], counts[:, summary.R_BINS :]
    )


def clock(after):
    """Seconds since the epoch, float64, once the tensors `after` are there.

    NaN within XLA, which has no clock.
    """
    graph = tf.compat.v1.get_default_graph()
    if control_flow_util.GraphOrParentsInXlaContext(graph):
        return tf.constant(float("nan"), tf.float64)
    with tf.control_dependencies(tf.nest.flatten(after, expand_composites=True)):
        return tf.timestamp()
