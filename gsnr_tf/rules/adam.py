"""Adam, and what the rules that follow from it share."""

import dataclasses

import tensorflow as tf

from gsnr_tf.rules.rule import Rule

SECOND_MOMENTS = ("adapted", "raw")


@dataclasses.dataclass(frozen=True)
class AdamMoments(Rule):
    """The moments of Adam, of the gradient times the moving average of the multiplier.

        p ← β₃p + (1−β₃)r;   p̂ = p/(1−β₃ᵗ);   ĝ = p̂·g + λ₂θ
        m ← β₁m + (1−β₁)ĝ;   v ← β₂v + (1−β₂)s²

    s is ĝ with `second_moment="adapted"`, g + λ₂θ with "raw". λ₂ is the coupled decay,
    usually 0. With β₃ = 0 there is no p: p̂ = r.
    """

    beta_1: float = 0.9
    beta_2: float = 0.999
    beta_3: float = 0.9
    epsilon: float = 1e-7
    second_moment: str = "adapted"

    @property
    def slots(self):
        return ("momentum", "velocity", *(("multiplier",) if self.beta_3 else ()))

    def __post_init__(self):
        for name in ("beta_1", "beta_2", "beta_3"):
            beta = getattr(self, name)
            if not 0 <= beta < 1:
                raise ValueError(f"{name} must be in [0, 1). Received: {name}={beta}")
        if self.second_moment not in SECOND_MOMENTS:
            raise ValueError(
                "second_moment must be 'adapted' or 'raw'. "
                f"Received: second_moment={self.second_moment!r}"
            )

    def moments(self, theta, gradient, multiplier, slots, at):
        """ĝ, and the slots after the step."""
        averaged = self._averaged(multiplier, slots, at.t)
        p = averaged.get("multiplier", multiplier)
        adapted = at.coupled(p * gradient, theta)
        squared = adapted
        if self.second_moment == "raw":
            squared = at.coupled(gradient, theta)
        first, second = self._weights_of_new(at.t)
        m, v = slots["momentum"], slots["velocity"]
        m += first * (adapted - m)
        v += second * (tf.square(squared) - v)
        return adapted, {"momentum": m, "velocity": v, **averaged}

    def _averaged(self, multiplier, slots, t):
        """The slot of the multiplier after the step, if there is one."""
        if not self.beta_3:
            return {}
        # The slot holds p̂ itself: p ← β₃p + (1−β₃)r and p̂ = p/(1−β₃ᵗ) in one line,
        # which leaves a multiplier of exactly 1 at exactly 1.
        p, beta_3 = slots["multiplier"], like(t, self.beta_3)
        weight = (1 - beta_3) / (1 - tf.pow(beta_3, t))
        # A multiplier is above 0, so this is a row's first. Late rows would begin with a
        # tenth of it, and take a while to be seen for what they are.
        p += tf.where(tf.equal(p, 0), tf.ones_like(p), weight) * (multiplier - p)
        return {"multiplier": p}

    def _weights_of_new(self, t):
        """1 − β₁ and 1 − β₂, as Keras' Adam and Lamb have them."""
        return 1 - self.beta_1, 1 - self.beta_2

    def over_root(self, m_hat, v, t):
        """m̂ / (√v̂ + ε), with v̂ = v/(1−β₂ᵗ)."""
        v_hat = v / (1 - tf.pow(like(t, self.beta_2), t))
        return m_hat / (tf.sqrt(v_hat) + self.epsilon)

    def adam_direction(self, theta, gradient, multiplier, slots, at):
        """m̂ / (√v̂ + ε), with m̂ = m/(1−β₁ᵗ), and the slots after the step."""
        _, slots = self.moments(theta, gradient, multiplier, slots, at)
        m_hat = slots["momentum"] / (1 - tf.pow(like(at.t, self.beta_1), at.t))
        return self.over_root(m_hat, slots["velocity"], at.t), slots


@dataclasses.dataclass(frozen=True)
class Adam(AdamMoments):
    """u = m̂/(√v̂ + ε);  θ ← θ − λ·wd·θ − λu, with the moments of `AdamMoments`."""

    def direction(self, theta, gradient, multiplier, slots, at):
        return self.adam_direction(theta, gradient, multiplier, slots, at)

    def descend(self, theta, u, phi, slots, at):
        theta = theta - theta * at.weight_decay * at.learning_rate
        return theta - at.learning_rate * u, {}


def like(t, value):
    """A Python number in the dtype of `t`."""
    return tf.constant(value, t.dtype)
