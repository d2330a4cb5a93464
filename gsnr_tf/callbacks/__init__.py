"""Keras 3 callbacks for training on several Horovod ranks.

They bear the names of Horovod's own, which fail under Keras 3.
"""

from gsnr_tf.callbacks.broadcast import BroadcastGlobalVariablesCallback
from gsnr_tf.callbacks.metrics import MetricAverageCallback
from gsnr_tf.callbacks.monitor import GSNRMonitor
from gsnr_tf.callbacks.ramp import BatchSizeRamp
from gsnr_tf.callbacks.warmup import LearningRateWarmupCallback

__all__ = [
    "BatchSizeRamp",
    "BroadcastGlobalVariablesCallback",
    "GSNRMonitor",
    "LearningRateWarmupCallback",
    "MetricAverageCallback",
]
