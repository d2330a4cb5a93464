"""LARS."""

import keras

from gsnr_tf.optimizers.adaptation import ADAPTATION_ARGUMENT, LayerAdaptedOptimizer
from gsnr_tf.optimizers.gsnr import COMMON_ARGUMENTS


@keras.saving.register_keras_serializable("gsnr_tf")
class GSNRLars(LayerAdaptedOptimizer):
    __doc__ = f"""LARS, scaled by GSNR.

        ĝ = r·g
        φ = η‖θ‖/(‖ĝ‖ + wd·‖θ‖ + ε), for each variable, 1 where either norm is 0
        m ← μm + λφ(ĝ + wd·θ)
        θ ← θ − m

    Args:
        learning_rate: λ. Float, schedule or callable. Defaults to 0.1.
        momentum: μ. Float in [0, 1]. Defaults to 0.9.
        trust_coefficient: η. Float. Defaults to 0.001.
        epsilon: ε. Float. Defaults to 1e-9.
        {ADAPTATION_ARGUMENT}
        {COMMON_ARGUMENTS.format(
            default_exclusion="variables with at most one dimension")}

    References: Jiang et al., arXiv 2309.13681, VR-LARS; You et al., arXiv 1708.03888.
    """

    slots = ("momentum",)

    def __init__(
        self,
        learning_rate=0.1,
        momentum=0.9,
        trust_coefficient=0.001,
        epsilon=1e-9,
        **kwargs,
    ):
        super().__init__(learning_rate, **kwargs)
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum must be in [0, 1]. Received: {momentum}")
        self.momentum = momentum
        self.trust_coefficient = trust_coefficient
        self.epsilon = epsilon

    def direction(self, theta, gradient, r, slots, step):
        return r * gradient, slots

    def trust_ratio(self, theta_norm, u_norm, step):
        decayed = u_norm + step.weight_decay * theta_norm + self.epsilon
        return self.trust_coefficient * theta_norm / decayed

    def descend(self, theta, u, phi, slots, step):
        move = step.learning_rate * phi * (u + step.weight_decay * theta)
        m = self.momentum * slots["momentum"] + move
        return theta - m, {"momentum": m}

    def get_config(self):
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "trust_coefficient": self.trust_coefficient,
            "epsilon": self.epsilon,
        }
