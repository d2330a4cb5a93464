"""The mathematics of samples: pure functions on tensors, with no rank and no Keras."""

from gsnr_tf.stats.gsnr import (
    ESTIMATORS,
    SOUND_SAMPLES,
    clip_multiplier,
    countable,
    gsnr,
    gsnr_of_share,
    multiplier,
    signal_share,
)
from gsnr_tf.stats.moments import Moments, merged

__all__ = [
    "ESTIMATORS",
    "Moments",
    "SOUND_SAMPLES",
    "clip_multiplier",
    "countable",
    "gsnr",
    "gsnr_of_share",
    "merged",
    "multiplier",
    "signal_share",
]
