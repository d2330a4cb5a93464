"""SGD and momentum."""

import dataclasses

from gsnr_tf.rules.rule import Rule, check_momentum


@dataclasses.dataclass(frozen=True)
class SGD(Rule):
    """ĝ = r·g + λ₂θ;  m ← μm − λĝ;  θ ← θ − λ·wd·θ + m, or + μm − λĝ with Nesterov's momentum.

    Without momentum there is no m: θ ← θ − λ·wd·θ − λĝ.
    """

    momentum: float = 0.0
    nesterov: bool = False

    # With a multiplier of 1 it is Keras' SGD to the bit.
    compiled = False

    def __post_init__(self):
        check_momentum(self.momentum)

    @property
    def slots(self):
        return ("momentum",) if self.momentum else ()

    def direction(self, theta, gradient, multiplier, slots, at):
        return at.coupled(multiplier * gradient, theta), slots

    def descend(self, theta, u, phi, slots, at):
        theta = theta - theta * at.weight_decay * at.learning_rate
        move = -at.learning_rate * u
        if not self.momentum:
            return theta + move, {}
        m = self.momentum * slots["momentum"] + move
        return theta + (self.momentum * m + move if self.nesterov else m), {"momentum": m}
