"""Weighted mean and variance of gradient samples, formed from deviations.

The variance is never taken as E[g²] − E[g]²: in float32 that loses every digit
once the mean is a few thousand times the standard deviation.
"""

from typing import NamedTuple

import tensorflow as tf


class Moments(NamedTuple):
    """What a set of samples amounts to, element by element.

    Attributes:
        weight: Scalar tensor, Σ w_i. With equal samples, their number.
        mean: Tensor `[n]`, Σ w_i g_i / Σ w_i.
        m2: Tensor `[n]`, Σ w_i (g_i − mean)², or `None` for 0: a single sample,
            or what is to count as one.
    """

    weight: tf.Tensor
    mean: tf.Tensor
    m2: tf.Tensor | None

    def add(self, sample, weight):
        """Moments after one more sample (Welford 1962; West 1979 for weights)."""
        total = self.weight + weight
        deviation = sample - self.mean
        mean = self.mean + deviation * tf.math.divide_no_nan(weight, total)
        if self.m2 is None:
            return Moments(total, mean, None)
        # w·W/(w+W)·(g − mean)² is never negative, unlike w(g − mean)(g − mean').
        share = tf.math.divide_no_nan(weight * self.weight, total)
        # The first sample has share 0, also where its square overflows.
        moved = tf.math.multiply_no_nan(tf.square(deviation), share)
        return Moments(total, mean, self.m2 + moved)

    def m2_about(self, mean):
        """Σ w_i (g_i − c)² about a common point c `[n]` in place of the own mean.

        Summed over groups of samples, with c the mean of them all, this is the
        m2 of them all (Chan, Golub and LeVeque 1983).
        """
        about = self.weight * tf.square(self.mean - mean)
        return about if self.m2 is None else self.m2 + about


def merged(means, m2s, weights):
    """The `Moments` of all samples of some groups of them.

    One reduction over the groups: a term for each of them would take XLA 8 s to compile for
    512 groups, and runs no faster for 2.

    Args:
        means: Tensor `[groups, n]`.
        m2s: The same of Σ w(g − mean)² within each group, or `None` for 0.
        weights: Tensor `[groups]`.
    """
    number = means.shape[0]
    total = tf.reduce_sum(weights)
    # Exactly 1 where all weigh the same, whatever they weigh.
    shares = (weights * number / total)[:, None]
    mean = tf.reduce_sum(shares * means, axis=0) / number
    squares = shares * tf.square(means - mean)
    if m2s is not None:
        squares += m2s * (number / total)
    return Moments(total, mean, tf.reduce_sum(squares, axis=0) * (total / number))
