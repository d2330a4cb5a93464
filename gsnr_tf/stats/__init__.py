"""The mathematics of samples: pure functions on tensors, with no rank and no Keras."""

from gsnr_tf.stats.gsnr import clip_multiplier, countable, gsnr, multiplier
from gsnr_tf.stats.moments import Moments, merged

__all__ = ["Moments", "clip_multiplier", "countable", "gsnr", "merged", "multiplier"]
