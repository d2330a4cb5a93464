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
from gsnr_tf.stats.shrinkage import ROW_ESTIMATORS, james_stein, row_moments

__all__ = [
    "ESTIMATORS",
    "ROW_ESTIMATORS",
    "SOUND_SAMPLES",
    "Moments",
    "clip_multiplier",
    "countable",
    "gsnr",
    "gsnr_of_share",
    "james_stein",
    "merged",
    "multiplier",
    "row_moments",
    "signal_share",
]
