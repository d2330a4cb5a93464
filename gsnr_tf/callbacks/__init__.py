"""Keras 3 callbacks for training on several Horovod ranks.

Those that Horovod has too, and that fail under Keras 3, bear its names.
"""

from gsnr_tf.callbacks.broadcast import BroadcastGlobalVariablesCallback
from gsnr_tf.callbacks.consistency import ConsistencyCheck, RanksDiffer
from gsnr_tf.callbacks.metrics import MetricAverageCallback
from gsnr_tf.callbacks.monitor import GSNRMonitor
from gsnr_tf.callbacks.preemption import SaveOnPreemption
from gsnr_tf.callbacks.ramp import BatchSizeRamp
from gsnr_tf.callbacks.skipped import SkippedUpdates
from gsnr_tf.callbacks.statistics import AverageBatchStatistics
from gsnr_tf.callbacks.warmup import LearningRateWarmupCallback

__all__ = [
    "AverageBatchStatistics",
    "BatchSizeRamp",
    "BroadcastGlobalVariablesCallback",
    "ConsistencyCheck",
    "GSNRMonitor",
    "LearningRateWarmupCallback",
    "MetricAverageCallback",
    "RanksDiffer",
    "SaveOnPreemption",
    "SkippedUpdates",
]
