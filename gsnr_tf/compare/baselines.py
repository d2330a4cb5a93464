"""Optimizers of Keras that are base to no form of GSNR: what else one might tune.

A form that leads its own base has shown little if another optimizer leads both.
"""

import dataclasses
import importlib

from gsnr_tf.rules import registry


@dataclasses.dataclass(frozen=True)
class Baseline:
    """One optimizer of Keras, as `registry.Row` describes those of the family.

    Attributes:
        name: How the command calls it.
        keras: Name of its class in `keras.optimizers`.
        learning_rate: A usual one, with which a search begins.
        arguments: Dict of what it is given.
        weight_decays: Ascending values of its own decoupled decay, which is tuned in place
            of the task's regularizer; empty where that is tuned.
    """

    name: str
    keras: str
    learning_rate: float
    arguments: dict = dataclasses.field(default_factory=dict)
    weight_decays: tuple = ()

    @property
    def keras_class(self):
        """The class of the optimizer."""
        return getattr(importlib.import_module("keras").optimizers, self.keras)


ROWS = (
    # At the rates of large batches and few updates a decay of .004, Keras' own, does nothing.
    Baseline("adamw", "AdamW", 0.003, weight_decays=(0.1, 0.3, 1.0)),
    Baseline("nesterov", "SGD", 0.1, {"momentum": 0.9, "nesterov": True}),
    # Tables and vectors are Adam's there, with the same rate.
    Baseline("muon", "Muon", 0.01),
)
BY_NAME = {row.name: row for row in ROWS}
# Everything that has a class in Keras, also those that forms of GSNR belong to.
NAMES = (*(row.name for row in registry.ROWS if row.keras), *BY_NAME)


def of(name):
    """The `registry.Row` or `Baseline` of a name."""
    return registry.BY_NAME.get(name) or BY_NAME[name]
