"""LARS."""

import dataclasses

from gsnr_tf.rules.rule import Rule, check_momentum


@dataclasses.dataclass(frozen=True)
class Lars(Rule):
    """ĝ = r·g + λ₂θ;  φ = η‖θ‖/(‖ĝ‖ + wd·‖θ‖ + ε), for each variable, 1 where either norm is 0;
    m ← μm + λφ(ĝ + wd·θ);  θ ← θ − m."""

    momentum: float = 0.9
    trust_coefficient: float = 0.001
    epsilon: float = 1e-9

    adapts = True
    exclude_vectors = True

    def __post_init__(self):
        check_momentum(self.momentum)

    @property
    def slots(self):
        return ("momentum",)

    def direction(self, theta, gradient, multiplier, slots, at):
        return at.coupled(multiplier * gradient, theta), slots

    def trust_ratio(self, theta_norm, u_norm, at):
        decayed = u_norm + at.weight_decay * theta_norm + self.epsilon
        return self.trust_coefficient * theta_norm / decayed

    def descend(self, theta, u, phi, slots, at):
        move = at.learning_rate * phi * (u + at.weight_decay * theta)
        m = self.momentum * slots["momentum"] + move
        return theta - m, {"momentum": m}
