"""LAMB."""

import dataclasses

from gsnr_tf.rules.adam import AdamMoments


@dataclasses.dataclass(frozen=True)
class Lamb(AdamMoments):
    """With the moments of `AdamMoments`,

        u = m̂/(√v̂ + ε) + wd·θ
        φ = ‖θ‖/‖u‖, for each variable, 1 where either norm is 0
        θ ← θ − λφu

    Weight decay is inside the trust ratio, as in the LAMB paper; `keras.optimizers.Lamb`
    has it outside.
    """

    epsilon: float = 1e-6

    adapts = True
    exclude_vectors = True

    def direction(self, theta, gradient, multiplier, slots, at):
        u, slots = self.adam_direction(theta, gradient, multiplier, slots, at)
        return u + at.weight_decay * theta, slots

    def trust_ratio(self, theta_norm, u_norm, at):
        return theta_norm / u_norm

    def descend(self, theta, u, phi, slots, at):
        return theta - at.learning_rate * phi * u, {}
