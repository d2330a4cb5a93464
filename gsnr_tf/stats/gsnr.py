"""From mean and variance to the GSNR and the multiplier of one variable."""

import numpy as np
import tensorflow as tf

from gsnr_tf._sound_samples import SOUND_SAMPLES as SOUND_SAMPLES


def gsnr(mean, variance, samples):
    """Gradient signal to noise ratio r = mean² / variance, Eq. 2 of the paper.

    Args:
        mean: Tensor of any shape, float32 or float64: the mean of the samples.
        variance: Tensor of the same shape and dtype: their biased variance.
        samples: Int or scalar tensor, how many samples there were.

    Returns:
        Tensor of the same shape: r ≥ 0, 0 where both are 0, and `inf` where all
        samples agree and the mean is not 0. Never NaN for finite means.
    """
    deviation = tf.sqrt(variance)
    # The mean of k equal numbers is itself off by up to k·ε/2, so a deviation below
    # k·ε·|mean| is rounding, not noise. Taken for noise, it would give elements on
    # which all samples agree a GSNR of about 1/ε², and swamp the mean over r.
    rounding = tf.cast(samples, mean.dtype) * np.finfo(mean.dtype.as_numpy_dtype).eps
    agreed = tf.logical_and(tf.not_equal(mean, 0), deviation <= rounding * tf.abs(mean))
    # (mean/σ)² and not mean²/σ²: the squares of large gradients overflow.
    ratio = tf.square(tf.math.divide_no_nan(mean, deviation))
    return tf.where(agreed, tf.constant(float("inf"), mean.dtype), ratio)


def signal_share(mean, variance, samples):
    """How much of the squared mean is signal, q = mean²/(mean² + variance/(k − 1)).

    variance/(k − 1) estimates, without bias, the noise that is left in the mean of k
    samples. q is the factor by which the mean is to be multiplied for the least squared
    error (Wiener's filter; the variance adaptation of Balles and Hennig, ICML 2018, arXiv
    1705.07774), with estimates in the place of what is not known. With r = mean²/variance
    it is (k − 1)r/(1 + (k − 1)r), which is bounded: no few elements can dominate its mean,
    as they do that of r at small k.

    Args:
        mean, variance, samples: As for `gsnr`.

    Returns:
        Tensor of the same shape, in [0, 1]: 0 where both are 0, 1 where all samples
        agree and the mean is not 0.
    """
    r = gsnr(mean, variance, samples)
    ratio = r * tf.cast(samples - 1, r.dtype)
    return tf.where(tf.math.is_inf(ratio), tf.ones_like(r), ratio / (1 + ratio))


def gsnr_of_share(share, samples):
    """r from `signal_share`, its inverse."""
    ratio = tf.math.divide_no_nan(share, 1 - share) / tf.cast(samples - 1, share.dtype)
    return tf.where(tf.equal(share, 1), tf.constant(float("inf"), share.dtype), ratio)


# What the multiplier is made of, by the name of the estimator.
ESTIMATORS = {"paper": gsnr, "robust": signal_share, "james_stein": signal_share}


def multiplier(mean, variance, samples, gamma, ceiling, estimator="paper"):
    """What each element's step is multiplied by: Eq. 8 and 9 of the paper.

    r, or in its place `signal_share`, is divided by its mean over the elements that
    carry information (mean or variance not 0) and are finite, then clipped. Elements
    of infinite r get the ceiling; if no finite one is left, all get it.

    Args:
        mean, variance, samples: As for `gsnr`; the tensors are one variable's.
        gamma: Python float, the floor.
        ceiling: Python float, the upper bound.
        estimator: A key of `ESTIMATORS`.

    Returns:
        Tensor of the shape of `mean`, in [gamma, ceiling].
    """
    r = ESTIMATORS[estimator](mean, variance, samples)
    finite, counted = countable(mean, variance, r)
    total, number = tf.reduce_sum(finite), tf.reduce_sum(counted)
    return clip_multiplier(r, total, number, gamma, ceiling)


def countable(mean, variance, r):
    """What r is averaged over: r where it counts, else 0, and 1 where it counts."""
    infinite = tf.math.is_inf(r)
    informative = tf.logical_or(tf.not_equal(mean, 0), tf.not_equal(variance, 0))
    counted = tf.logical_and(informative, tf.logical_not(infinite))
    # Without information r is 0 by itself.
    return tf.where(infinite, tf.zeros_like(r), r), tf.cast(counted, r.dtype)


def clip_multiplier(r, total, number, gamma, ceiling):
    """Multiplier from r and the sums of what `countable` gives, over the variable.

    Args:
        r: Tensor, what the estimator gives; `inf` is beyond all bounds.
        total, number: Tensors that broadcast against r.
        gamma, ceiling: Python floats.
    """
    average = tf.math.divide_no_nan(total, number)
    at_ceiling = tf.logical_or(tf.math.is_inf(r), tf.equal(number, 0))
    r = tf.where(at_ceiling, tf.zeros_like(r), r)
    clipped = tf.clip_by_value(tf.math.divide_no_nan(r, average), gamma, ceiling)
    return tf.where(at_ceiling, tf.constant(ceiling, r.dtype), clipped)
