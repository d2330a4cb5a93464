"""What an update needs to know besides its rule."""

import dataclasses
from typing import NamedTuple


@dataclasses.dataclass(frozen=True)
class Settings:
    """What holds for all variables.

    Attributes:
        gamma, ceiling: Floats, bounds of the multiplier.
        estimator: A key of `stats.ESTIMATORS`.
        clipnorm, global_clipnorm, clipvalue: Floats or `None`: bounds of the norm of
            each variable's gradient, of the norm of all, and of each element.
    """

    gamma: float = 0.1
    ceiling: float = 1.0
    estimator: str = "paper"
    clipnorm: float | None = None
    global_clipnorm: float | None = None
    clipvalue: float | None = None


class VariableSettings(NamedTuple):
    """What holds for one variable.

    Attributes:
        weight_decay: Float, decoupled.
        adapts: Whether its trust ratio may be other than 1.
    """

    weight_decay: float = 0.0
    adapts: bool = False
