"""Adam."""

import keras
import tensorflow as tf

from gsnr_tf.optimizers.gsnr import COMMON_ARGUMENTS, GSNROptimizer

ADAM_ARGUMENTS = """beta_1, beta_2: Floats in [0, 1): decay of the moments of the gradient.
            Default to 0.9 and 0.999.
        beta_3: Float in [0, 1): decay of the moving average of r. Defaults to 0.9.
        epsilon: Float, added to the root of the corrected second moment, √v̂, as by
            keras.optimizers.Lamb. keras.optimizers.Adam adds its own before it corrects:
            there it weighs 1/√(1−β₂ᵗ) as much, 32 times at the first step.
        second_moment: "adapted" (s = p̂·g, the paper's form) or "raw" (s = g).
            Defaults to "adapted", with `estimator="robust"` to "raw"."""


class AdamMoments:
    """The part of the rule that Adam and LAMB share, with the slots it needs."""

    slots = ("momentum", "velocity", "multiplier")

    def set_moments(self, beta_1, beta_2, beta_3, epsilon, second_moment):
        for name, beta in (("beta_1", beta_1), ("beta_2", beta_2), ("beta_3", beta_3)):
            if not 0 <= beta < 1:
                raise ValueError(f"{name} must be in [0, 1). Received: {name}={beta}")
        if second_moment is None:
            second_moment = "raw" if self.estimator == "robust" else "adapted"
        if second_moment not in ("adapted", "raw"):
            raise ValueError(
                "second_moment must be 'adapted' or 'raw'. "
                f"Received: second_moment={second_moment!r}"
            )
        self.beta_1, self.beta_2, self.beta_3 = beta_1, beta_2, beta_3
        self.epsilon = epsilon
        self.second_moment = second_moment

    def adam_direction(self, gradient, r, slots, t):
        """m̂ / (√v̂ + ε), and the slots after the step."""
        # The slot holds p̂ itself: p ← β₃p + (1−β₃)r and p̂ = p/(1−β₃ᵗ) in one line,
        # which leaves a multiplier of exactly 1 at exactly 1.
        p = slots["multiplier"]
        beta_3 = _like(t, self.beta_3)
        p += (1 - beta_3) / (1 - tf.pow(beta_3, t)) * (r - p)
        adapted = p * gradient
        squared = adapted if self.second_moment == "adapted" else gradient
        m = slots["momentum"]
        m += (1 - self.beta_1) * (adapted - m)
        v = slots["velocity"]
        v += (1 - self.beta_2) * (tf.square(squared) - v)
        m_hat = m / (1 - tf.pow(_like(t, self.beta_1), t))
        v_hat = v / (1 - tf.pow(_like(t, self.beta_2), t))
        u = m_hat / (tf.sqrt(v_hat) + self.epsilon)
        return u, {"momentum": m, "velocity": v, "multiplier": p}

    def moments_config(self):
        return {
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "beta_3": self.beta_3,
            "epsilon": self.epsilon,
            "second_moment": self.second_moment,
        }


def _like(t, value):
    return tf.constant(value, t.dtype)


@keras.saving.register_keras_serializable("gsnr_tf")
class GSNRAdam(AdamMoments, GSNROptimizer):
    __doc__ = f"""Adam, with decoupled weight decay, scaled by GSNR.

        p ← β₃p + (1−β₃)r;   p̂ = p/(1−β₃ᵗ);   ĝ = p̂·g
        m ← β₁m + (1−β₁)ĝ;   v ← β₂v + (1−β₂)s²;   u = m̂/(√v̂ + ε)
        θ ← θ − λ·wd·θ − λu

    Args:
        learning_rate: λ. Float, schedule or callable. Defaults to 0.001.
        {ADAM_ARGUMENTS} `epsilon` defaults to 1e-7.
        {COMMON_ARGUMENTS.format(default_exclusion="none is excluded")}

    Reference: Jiang et al., arXiv 2309.13681, VR-Adam.
    """

    def __init__(
        self,
        learning_rate=0.001,
        beta_1=0.9,
        beta_2=0.999,
        beta_3=0.9,
        epsilon=1e-7,
        second_moment=None,
        **kwargs,
    ):
        super().__init__(learning_rate, **kwargs)
        self.set_moments(beta_1, beta_2, beta_3, epsilon, second_moment)

    def direction(self, theta, gradient, r, slots, step):
        return self.adam_direction(gradient, r, slots, step.t)

    def descend(self, theta, u, phi, slots, step):
        theta = theta - theta * step.weight_decay * step.learning_rate
        return theta - step.learning_rate * u, {}

    def get_config(self):
        return {**super().get_config(), **self.moments_config()}
