"""The mathematics of samples: pure functions on tensors, with no rank and no Keras."""

from gsnr_tf.stats.gsnr import gsnr, multiplier
from gsnr_tf.stats.moments import Moments

__all__ = ["Moments", "gsnr", "multiplier"]
