"""The family in one table: what engine, compare, plan, bench, advise and tune know of it.

Importing it needs neither Keras nor TensorFlow; classes are looked up when asked for.
"""

import dataclasses
import importlib

# Rules by which a learning rate grows with the batch: of those that divide by the size of
# the gradient as √B, of the others as the gain of AdaScale, at most linearly.
SQUARE_ROOT, GAIN = "sqrt", "adascale"


@dataclasses.dataclass(frozen=True)
class Row:
    """One rule of the family.

    Attributes:
        name: How commands call it.
        optimizer: Name of the class in `gsnr_tf`.
        keras: Name of its base optimizer in `keras.optimizers`, or `None`.
        arguments: Dict of what both are given.
        slots: Ints: numbers of state for each parameter, of ours and of the base.
        adapts: Whether it has a trust ratio.
        rate_scaling: `SQUARE_ROOT` or `GAIN`.
        learning_rate: A usual one, with which a search begins.
    """

    name: str
    optimizer: str
    keras: str | None
    slots: tuple
    adapts: bool
    rate_scaling: str
    learning_rate: float
    arguments: dict = dataclasses.field(default_factory=dict)

    @property
    def sums(self):
        """How many short allreduces a sharded update takes: one more for norms."""
        return 2 if self.adapts else 1

    @property
    def optimizer_class(self):
        """The class in `gsnr_tf`."""
        return getattr(importlib.import_module("gsnr_tf.optimizers"), self.optimizer)

    @property
    def keras_class(self):
        """The class of the base optimizer, or `None`."""
        if self.keras is None:
            return None
        return getattr(importlib.import_module("keras").optimizers, self.keras)


ROWS = (
    Row("adam", "GSNRAdam", "Adam", (3, 2), False, SQUARE_ROOT, 0.003),
    Row("lamb", "GSNRLamb", "Lamb", (3, 2), True, SQUARE_ROOT, 0.01),
    Row("nadam", "GSNRNadam", "Nadam", (3, 2), False, SQUARE_ROOT, 0.003),
    Row("momentum", "GSNRSGD", "SGD", (1, 1), False, GAIN, 0.1, {"momentum": 0.9}),
    # Keras has no LARS.
    Row("lars", "GSNRLars", None, (1, 1), True, GAIN, 3.0),
)
BY_NAME = {row.name: row for row in ROWS}
BY_OPTIMIZER = {row.optimizer: row for row in ROWS}


def of(optimizer):
    """The `Row` of a class of the family or its name; `None` for any other."""
    name = optimizer if isinstance(optimizer, str) else optimizer.__name__
    return BY_OPTIMIZER.get(name)
