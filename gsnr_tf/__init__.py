"""Large-batch training for Keras 3 by gradient signal to noise ratio (GSNR).

Importing the package loads neither TensorFlow nor Keras: names load when they are first
used, so that the command line answers at once and works where TensorFlow is not there.
"""

from typing import TYPE_CHECKING

from gsnr_tf import _keras_names, _rank_device
from gsnr_tf._lazy import lazy_names
from gsnr_tf._version import __version__ as __version__
from gsnr_tf.comm import error_file

if TYPE_CHECKING:
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
        LossScaleOptimizer,
    )
    from gsnr_tf.resilience import ElasticState, elastic_run
    from gsnr_tf.strategy import fit_in_strategy

__all__ = [
    "GSNRSGD",
    "DistributedOptimizer",
    "ElasticState",
    "GSNRAdam",
    "GSNRLamb",
    "GSNRLars",
    "GSNRNadam",
    "LossScaleOptimizer",
    "callbacks",
    "elastic_run",
    "fit_in_strategy",
    "initialize",
    "rank",
    "shard",
    "size",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "gsnr_tf.comm": ("rank", "size"),
        "gsnr_tf.data": ("shard",),
        "gsnr_tf.engine": ("initialize",),
        "gsnr_tf.optimizers": (
            "DistributedOptimizer",
            "GSNRAdam",
            "GSNRLamb",
            "GSNRLars",
            "GSNRNadam",
            "GSNRSGD",
            "LossScaleOptimizer",
        ),
        "gsnr_tf.resilience": ("ElasticState", "elastic_run"),
        "gsnr_tf.strategy": ("fit_in_strategy",),
    },
)

_keras_names.check_backend()
_keras_names.register_when_keras_loads()
_rank_device.choose_when_tensorflow_loads()
# In a rank of `gsnr-tf run`, what ends it is recorded from here on.
error_file.install()
