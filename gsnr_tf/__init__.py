"""Large-batch training for Keras 3 by gradient signal to noise ratio (GSNR)."""

__version__ = "0.1.0"

import keras as _keras

if _keras.backend.backend() != "tensorflow":
    raise ImportError(
        "gsnr_tf needs Keras on TensorFlow. Received: the Keras backend "
        f"'{_keras.backend.backend()}'. Set KERAS_BACKEND=tensorflow."
    )

from gsnr_tf import callbacks
from gsnr_tf.comm import rank, size
from gsnr_tf.data import shard
from gsnr_tf.engine import initialize
from gsnr_tf.optimizers import (
    GSNRSGD,
    DistributedOptimizer,
    GSNRAdam,
    GSNRLamb,
    GSNRLars,
)
from gsnr_tf.resilience import LossScaleOptimizer

__all__ = [
    "DistributedOptimizer",
    "GSNRAdam",
    "GSNRLamb",
    "GSNRLars",
    "GSNRSGD",
    "LossScaleOptimizer",
    "callbacks",
    "initialize",
    "rank",
    "shard",
    "size",
]
