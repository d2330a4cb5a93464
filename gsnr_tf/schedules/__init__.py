"""Learning-rate schedules, by updates."""

from gsnr_tf.schedules.base import UpdateSchedule
from gsnr_tf.schedules.cosine import WarmupCosine
from gsnr_tf.schedules.deepspeed import (
    DEEPSPEED,
    LRRangeTest,
    OneCycle,
    WarmupCosineLR,
    WarmupDecayLR,
    WarmupLR,
)

__all__ = [
    "DEEPSPEED",
    "LRRangeTest",
    "OneCycle",
    "UpdateSchedule",
    "WarmupCosine",
    "WarmupCosineLR",
    "WarmupDecayLR",
    "WarmupLR",
]
