"""Adam with Nesterov's momentum."""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from gsnr_tf.rules.adam import Adam, like

# Dozat's schedule of momenta: μ_t = β₁(1 − ½·0.96ᵗ).
_DECAY = 0.96
# Terms of the series below, of which each is at most half the one before: so many leave
# an error below float64's rounding.
_TERMS = np.arange(1, 56, dtype="float64")


@dataclasses.dataclass(frozen=True)
class Nadam(Adam):
    """The moments of `AdamMoments`, and with μ_t = β₁(1 − ½·0.96ᵗ), Π_t = μ₁⋯μ_t

        m̂ = μ_{t+1}·m/(1 − Π_{t+1}) + (1 − μ_t)·ĝ/(1 − Π_t)
        u = m̂/(√v̂ + ε);   θ ← θ − λ·wd·θ − λu

    Reference: Dozat 2016, as in keras.optimizers.Nadam.
    """

    def direction(self, theta, gradient, multiplier, slots, at):
        adapted, slots = self.moments(theta, gradient, multiplier, slots, at)
        mu, mu_next = self._momentum(at.t), self._momentum(at.t + 1)
        product = self._product(at.t)
        m_hat = mu_next * slots["momentum"] / (1 - product * mu_next)
        m_hat += (1 - mu) * adapted / (1 - product)
        return self.over_root(m_hat, slots["velocity"], at.t), slots

    def _weights_of_new(self, t):
        """Keras' Nadam rounds β first, which float32 sees in the fifth digit of 1 − β₂."""
        return 1 - like(t, self.beta_1), 1 - like(t, self.beta_2)

    def _momentum(self, t):
        return self.beta_1 * (1 - 0.5 * tf.pow(like(t, _DECAY), t))

    def _product(self, t):
        """Π_t, in closed form, so that no state is needed and any update can be the first.

        Σ_{i≤t} ln(1 − ½qⁱ) = −Σ_n (½)ⁿ/n · qⁿ(1 − q^{nt})/(1 − qⁿ), with q = 0.96.
        """
        if not self.beta_1:
            return tf.zeros_like(t)
        powers = _DECAY**_TERMS
        factors = 0.5**_TERMS / _TERMS * powers / (1 - powers)
        left = 1 - tf.exp(t * like(t, _TERMS * math.log(_DECAY)))
        log = t * math.log(self.beta_1) - tf.reduce_sum(like(t, factors) * left)
        return tf.exp(log)
