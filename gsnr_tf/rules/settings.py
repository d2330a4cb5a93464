"""What an update needs to know besides its rule."""

import dataclasses
from typing import NamedTuple

# Coupled decay λ₂θ may be added to the gradient before the multiplier, after it, or after
# it and as far as the gradient is noise: λ₂(1 − q)θ, with q the share of signal.
L2_FORMS = ("inside", "outside", "gated")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What holds for all variables.

    Attributes:
        gamma, ceiling: Floats, bounds of the multiplier.
        estimator: A key of `stats.ESTIMATORS`.
        l2_form: Where coupled decay enters; one of `L2_FORMS`.
        clipnorm, global_clipnorm, clipvalue: Floats or `None`: bounds of the norm of
            each variable's gradient, of the norm of all, and of each element.
    """

    gamma: float = 0.1
    ceiling: float = 1.0
    estimator: str = "paper"
    l2_form: str = "outside"
    clipnorm: float | None = None
    global_clipnorm: float | None = None
    clipvalue: float | None = None


class VariableSettings(NamedTuple):
    """What holds for one variable.

    Attributes:
        weight_decay: Float, decoupled.
        l2: Float, coupled, λ₂.
        adapts: Whether its trust ratio may be other than 1.
        by_row: Whether samples are judged by row, not by element.
    """

    weight_decay: float = 0.0
    l2: float = 0.0
    adapts: bool = False
    by_row: bool = False
