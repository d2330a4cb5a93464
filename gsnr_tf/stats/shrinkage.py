"""Statistics by row: what a row of an embedding table says as a whole.

An element that occurs in one of k samples has the share of signal ½, whatever it says: its
deviation is as large as its mean. The elements of a row occur together, and how they differ
tells signal from noise.
"""

import tensorflow as tf

from gsnr_tf.stats.gsnr import ESTIMATORS, gsnr, signal_share


def row_moments(mean, variance):
    """M² = mean of ḡ² and mean of σ² over each row.

    Args:
        mean, variance: Tensors `[rows, width]`.

    Returns:
        Two tensors `[rows, 1]`.
    """
    square = tf.reduce_mean(tf.square(mean), axis=1, keepdims=True)
    return square, tf.reduce_mean(variance, axis=1, keepdims=True)


def james_stein(mean, variance, samples):
    """Positive-part James–Stein shrinkage of each row: (1 − (d−2)/d · S/M²)₊.

    S = mean of σ² over the row, ÷ (k−1), is the noise that is left in the mean of k
    samples. d is the width of the row; up to d = 2 it is `signal_share` of the row
    (James and Stein 1961; the positive part, Baranchik 1964).

    Args:
        mean, variance: Tensors `[rows, width]`.
        samples: Int or scalar tensor, k.

    Returns:
        Tensor `[rows, 1]` in [0, 1], 0 where the mean is 0.
    """
    width = mean.shape[1]
    square, row_variance = row_moments(mean, variance)
    if width <= 2:
        return signal_share(tf.sqrt(square), row_variance, samples)
    noise = row_variance / tf.cast(samples - 1, mean.dtype)
    share = 1 - (width - 2) / width * tf.math.divide_no_nan(noise, square)
    return tf.where(square > 0, tf.maximum(share, 0), tf.zeros_like(share))


def _of_row(estimator):
    """An estimator by element, of the moments of rows."""

    def by_row(mean, variance, samples):
        square, row_variance = row_moments(mean, variance)
        return estimator(tf.sqrt(square), row_variance, samples)

    return by_row


# As `ESTIMATORS`, from `[rows, width]` to `[rows, 1]`.
ROW_ESTIMATORS = {
    "paper": _of_row(gsnr),
    "robust": _of_row(signal_share),
    "james_stein": james_stein,
}
assert ROW_ESTIMATORS.keys() == ESTIMATORS.keys()
