"""What Keras must know of this package before any of it is loaded.

A saved model names its optimizer as Keras has it registered, "gsnr_tf>GSNRLamb", and a
program that loads it may do no more than `import gsnr_tf`, which loads no optimizer. So a
stand-in is registered under each name as soon as Keras itself is loaded. It loads the
class when it is first asked for anything, and the class then takes its place.
"""

import importlib
import json
import os
import sys
from pathlib import Path

import wrapt

from gsnr_tf.rules import registry

_PACKAGE = "gsnr_tf"

# Registered classes, and the module whose import registers them.
HOMES = {
    "DistributedOptimizer": "gsnr_tf.optimizers",
    "Embedding": "gsnr_tf.layers",
    **{row.optimizer: "gsnr_tf.optimizers" for row in registry.ROWS},
    **{
        f"DeepSpeed{name}": "gsnr_tf.engine.deepspeed.optimizers"
        for name in ("Adagrad", "Adam", "Lamb", "Lion", "SGD")
    },
    "LossScaleOptimizer": "gsnr_tf.optimizers",
    "LRRangeTest": "gsnr_tf.schedules",
    "OneCycle": "gsnr_tf.schedules",
    "WarmupCosine": "gsnr_tf.schedules",
    "WarmupCosineLR": "gsnr_tf.schedules",
    "WarmupDecayLR": "gsnr_tf.schedules",
    "WarmupLR": "gsnr_tf.schedules",
}
# Keras' optimizers that DistributedOptimizer does not wrap.
_NOT_WRAPPED = ("Optimizer", "LossScaleOptimizer", "MultiOptimizer")


def check_backend():
    """Raises ImportError where Keras is not, or will not be, on TensorFlow."""
    name = _backend()
    if name != "tensorflow":
        raise ImportError(
            "gsnr_tf needs Keras on TensorFlow. Received: the Keras backend "
            f"{name!r}. Set KERAS_BACKEND=tensorflow."
        )


def _backend():
    """The backend of Keras, without loading it: as it looks for the name itself."""
    if "keras" in sys.modules:
        return sys.modules["keras"].config.backend()
    if os.environ.get("KERAS_BACKEND"):
        return os.environ["KERAS_BACKEND"]
    folder = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
    try:
        settings = json.loads(Path(folder, "keras.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        settings = {}
    return settings.get("backend", "tensorflow")


def register_when_keras_loads():
    """Registers the stand-ins now, or as soon as Keras is loaded."""
    wrapt.register_post_import_hook(_register, "keras")


def _register(keras):
    known = keras.saving.get_custom_objects()
    for name, home in {**_distributed(keras), **HOMES}.items():
        known.setdefault(f"{_PACKAGE}>{name}", _StandIn(name, home))


def _distributed(keras):
    """Names of Keras' own optimizers as DistributedOptimizer makes them."""
    return {
        f"Distributed{name}": "gsnr_tf.optimizers"
        for name, rule in vars(keras.optimizers).items()
        if isinstance(rule, type)
        and issubclass(rule, keras.optimizers.Optimizer)
        and name not in _NOT_WRAPPED
    }


class _StandIn:
    """Has what the class has that is registered when its module is imported."""

    def __init__(self, name, home):
        self._name, self._home = name, home

    def __getattr__(self, attribute):
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return getattr(self._class(), attribute)

    def __call__(self, *args, **kwargs):
        return self._class()(*args, **kwargs)

    def _class(self):
        importlib.import_module(self._home)
        keras = sys.modules["keras"]
        return keras.saving.get_custom_objects()[f"{_PACKAGE}>{self._name}"]
