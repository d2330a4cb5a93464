"""Large-batch training for Keras 3 by gradient signal to noise ratio (GSNR)."""

__version__ = "0.1.0"

import os as _os


def _check_backend(name):
    if name != "tensorflow":
        raise ImportError(
            "gsnr_tf needs Keras on TensorFlow. Received: the Keras backend "
            f"'{name}'. Set KERAS_BACKEND=tensorflow."
        )


# Before Keras tries to import a backend that may not be installed.
_check_backend(_os.environ.get("KERAS_BACKEND", "tensorflow"))

import keras as _keras

_check_backend(_keras.backend.backend())

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
    GSNRNadam,
)
from gsnr_tf.resilience import ElasticState, LossScaleOptimizer, elastic_run

__all__ = [
    "DistributedOptimizer",
    "ElasticState",
    "GSNRAdam",
    "GSNRLamb",
    "GSNRLars",
    "GSNRNadam",
    "GSNRSGD",
    "LossScaleOptimizer",
    "callbacks",
    "elastic_run",
    "initialize",
    "rank",
    "shard",
    "size",
]
