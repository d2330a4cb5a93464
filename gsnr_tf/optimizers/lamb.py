"""LAMB."""

import keras

from gsnr_tf.optimizers.adam import ADAM_ARGUMENTS, AdamMoments
from gsnr_tf.optimizers.adaptation import ADAPTATION_ARGUMENT, LayerAdaptedOptimizer
from gsnr_tf.optimizers.gsnr import COMMON_ARGUMENTS


@keras.saving.register_keras_serializable("gsnr_tf")
class GSNRLamb(AdamMoments, LayerAdaptedOptimizer):
    __doc__ = f"""LAMB, scaled by GSNR.

        p ← β₃p + (1−β₃)r;   p̂ = p/(1−β₃ᵗ);   ĝ = p̂·g
        m ← β₁m + (1−β₁)ĝ;   v ← β₂v + (1−β₂)s²;   u = m̂/(√v̂ + ε) + wd·θ
        φ = ‖θ‖/‖u‖, for each variable, 1 where either norm is 0
        θ ← θ − λφu

    Weight decay is inside the trust ratio, as in the LAMB paper; `keras.optimizers.Lamb`
    has it outside.

    Args:
        learning_rate: λ. Float, schedule or callable. Defaults to 0.001.
        {ADAM_ARGUMENTS} `epsilon` defaults to 1e-6.
        {ADAPTATION_ARGUMENT}
        {COMMON_ARGUMENTS.format(
            default_exclusion="variables with at most one dimension")}

    References: Jiang et al., arXiv 2309.13681, VR-LAMB; You et al., arXiv 1904.00962.
    """

    def __init__(
        self,
        learning_rate=0.001,
        beta_1=0.9,
        beta_2=0.999,
        beta_3=0.9,
        epsilon=1e-6,
        second_moment=None,
        **kwargs,
    ):
        super().__init__(learning_rate, **kwargs)
        self.set_moments(beta_1, beta_2, beta_3, epsilon, second_moment)

    def direction(self, theta, gradient, r, slots, step):
        u, slots = self.adam_direction(gradient, r, slots, step.t)
        return u + step.weight_decay * theta, slots

    def trust_ratio(self, theta_norm, u_norm, step):
        return theta_norm / u_norm

    def descend(self, theta, u, phi, slots, step):
        return theta - step.learning_rate * phi * u, {}

    def get_config(self):
        return {**super().get_config(), **self.moments_config()}
