"""The optimizer family, and Keras' own optimizers on several workers."""

from gsnr_tf.optimizers import stopping as stopping
from gsnr_tf.optimizers.adam import GSNRAdam
from gsnr_tf.optimizers.distributed import DistributedOptimizer
from gsnr_tf.optimizers.lamb import GSNRLamb
from gsnr_tf.optimizers.lars import GSNRLars

# Its import is what makes Keras wrap optimizers of this package in it, in `compile` too.
from gsnr_tf.optimizers.loss_scale import LossScaleOptimizer
from gsnr_tf.optimizers.nadam import GSNRNadam
from gsnr_tf.optimizers.sgd import GSNRSGD

__all__ = [
    "GSNRSGD",
    "DistributedOptimizer",
    "GSNRAdam",
    "GSNRLamb",
    "GSNRLars",
    "GSNRNadam",
    "LossScaleOptimizer",
]
