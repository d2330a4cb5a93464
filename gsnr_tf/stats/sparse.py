"""Samples of a gradient that has only some rows of a table.

A row that a sample does not have is 0 in it, which is a value like any other: mean and
variance are those that the whole table would have, of the rows that some sample has.
"""

from typing import NamedTuple

import tensorflow as tf

from gsnr_tf.stats.moments import Moments


class Rows(NamedTuple):
    """Some rows of a table.

    Attributes:
        keys: Integer tensor `[rows]`, their numbers, no two alike.
        values: Tensor `[rows, width]`.
    """

    keys: tf.Tensor
    values: tf.Tensor


class SparseMoments(NamedTuple):
    """`Moments` of samples of a table, of the rows that any of them has.

    Attributes:
        weight: Scalar tensor, Σ w_i.
        keys: Integer tensor `[rows]`, no two alike.
        mean: Tensor `[rows, width]`.
        m2: Tensor `[rows, width]`, or `None`: the samples count as one.
    """

    weight: tf.Tensor
    keys: tf.Tensor
    mean: tf.Tensor
    m2: tf.Tensor | None

    def add(self, sample, weight):
        """Moments after one more sample, `Rows`; see `Moments.add`."""
        keys, index = tf.unique(tf.concat([self.keys, sample.keys], axis=0))
        before, own = tf.split(index, [tf.size(self.keys), tf.size(sample.keys)])
        number = tf.size(keys)
        mean = sums_by_row(before, number, self.mean)
        m2 = None if self.m2 is None else sums_by_row(before, number, self.m2)
        values = sums_by_row(own, number, sample.values)
        whole = Moments(self.weight, mean, m2).add(values, weight)
        return SparseMoments(whole.weight, keys, whole.mean, whole.m2)


def sums_by_row(index, number, values, weights=None):
    """Sums of the rows that go to one place: Σ wᵢ·valuesᵢ over all i with indexᵢ = j.

    Args:
        index: Integer tensor `[m]`, below `number`.
        number: Int or scalar tensor.
        values: Floating-point tensor `[m, width]`.
        weights: Tensor `[m]`, or `None`: all are 1.

    Returns:
        Tensor `[number, width]`, 0 where nothing goes.
    """
    # A product with a sparse matrix: a fifth of the time of `unsorted_segment_sum`.
    m = tf.size(index, tf.int64)
    number = tf.cast(number, tf.int64)
    places = tf.stack([tf.cast(index, tf.int64), tf.range(m)], axis=1)
    if weights is None:
        weights = tf.ones(tf.shape(index), values.dtype)
    return tf.raw_ops.SparseTensorDenseMatMul(
        a_indices=places, a_values=weights, a_shape=tf.stack([number, m]), b=values
    )


def distinct(keys, values):
    """`Rows` of keys that may repeat: the values of one key are summed."""
    keys, index = tf.unique(keys)
    return Rows(keys, sums_by_row(index, tf.size(keys), values))


def merged_sparse(keys, means, m2s, group, weights):
    """The `SparseMoments` of all samples of some groups; see `merged`.

    Args:
        keys: Integer tensor `[m]`, of all groups; a group has a key at most once.
        means: Tensor `[m, width]`, the mean of the samples of the row's group.
        m2s: The same of their Σ w(g − mean)², or `None` for 0.
        group: Integer tensor `[m]`, which group a row is of.
        weights: Tensor `[groups]`.
    """
    keys, index = tf.unique(keys)
    number, groups = tf.size(keys), tf.cast(tf.size(weights), weights.dtype)
    total = tf.reduce_sum(weights)
    # Exactly 1 where all weigh the same, whatever they weigh.
    shares = weights * groups / total
    share = tf.gather(shares, group)
    mean = sums_by_row(index, number, means, share) / groups
    squares = share[:, None] * tf.square(means - tf.gather(mean, index))
    if m2s is not None:
        squares += m2s * (groups / total)
    # Groups without the row have 0 there. Where none is without it, rounding must not leave
    # a little: mean² may be a million times the variance.
    told = tf.stack([share, tf.ones_like(share)], axis=1)
    have, count = tf.unstack(sums_by_row(index, number, told), axis=1)
    without = tf.where(count < groups, tf.maximum(groups - have, 0), tf.zeros_like(have))
    squares = sums_by_row(index, number, squares) + without[:, None] * tf.square(mean)
    return SparseMoments(total, keys, mean, squares * (total / groups))
