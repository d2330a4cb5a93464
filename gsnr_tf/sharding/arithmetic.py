"""What an update computes, of elements of one or several variables: the only place.

What the elements are, all of a variable, a rank's shard of a bucket, the rows of a table
that were looked up, or a sample for monitors, is said by an object with `broadcast(values)`,
from a number for each variable to what broadcasts against the elements, and `sums(*vectors)`,
over the elements of each variable.
"""

from typing import NamedTuple

import tensorflow as tf

from gsnr_tf.rules.rule import Coefficients
from gsnr_tf.stats import (
    ESTIMATORS,
    ROW_ESTIMATORS,
    clip_multiplier,
    countable,
    gsnr_of_share,
    row_moments,
)


class Statistics(NamedTuple):
    """What the samples say of a shard.

    Attributes:
        mean: The mean gradient, in the shape of the shard.
        r: What the estimator gives, likewise, or `[rows, 1]` by row.
        noise: 1 − q, the share of noise, likewise, where decay is gated by it, or `None`.
        sums: `[variables, 4]`: Σ r, how many count, Σ mean², Σ variance.
    """

    mean: tf.Tensor
    r: tf.Tensor
    noise: tf.Tensor | None
    sums: tf.Tensor


class Arithmetic:
    """Statistics, multiplier and rule, on tensors.

    Args:
        rule: The `Rule`.
        settings: `Settings`.
        of_variables: List of `VariableSettings`, of the variables in question.
        dtype: Of statistics.
        by_row: Whether what is judged is rows: tensors are `[rows, width]` then.
    """

    def __init__(self, rule, settings, of_variables, dtype, by_row):
        self.rule = rule
        self.settings = settings
        self._dtype = dtype
        self._by_row = by_row
        self._decays = [variable.weight_decay for variable in of_variables]
        self._l2s = [variable.l2 for variable in of_variables]
        self._adapts = [rule.adapts and variable.adapts for variable in of_variables]

    @property
    def adapts(self):
        """Whether any variable has a trust ratio, which waits for its norms."""
        return any(self._adapts)

    @property
    def bounds(self):
        """Floor and ceiling of the multiplier."""
        return self.settings.gamma, self.settings.ceiling

    def gsnr(self, r, number):
        """The GSNR, of what the estimator gives."""
        return r if self.settings.estimator == "paper" else gsnr_of_share(r, number)

    def weigh(self, elements, mean, variance, number):
        """`Statistics` from mean and variance.

        Args:
            elements: What they are.
            mean, variance: Tensors.
            number: How many samples there were.
        """
        estimators = ROW_ESTIMATORS if self._by_row else ESTIMATORS
        r = estimators[self.settings.estimator](mean, variance, number)
        judged = row_moments(mean, variance) if self._by_row else (mean, variance)
        finite, counted = countable(*judged, r)
        sums = elements.sums(finite, counted, mean * mean, variance)
        noise = None
        if self.settings.l2_form == "gated" and any(self._l2s):
            noise = 1 - estimators["robust"](mean, variance, number)
        return Statistics(mean, r, noise, sums)

    def toward(self, elements, theta, statistics, slots, scales, rate, t):
        """Multiplier, u, and the slots after `Rule.direction`.

        Args:
            elements: What they are.
            theta: Tensor of them.
            statistics: `Statistics`, with the sums over all shards.
            slots: Dict of tensors.
            scales: `[variables]`, from clipping by norm.
            rate, t: Scalars.
        """
        mean, r, noise, sums = statistics
        multiplier = clip_multiplier(
            r,
            elements.broadcast(sums[:, 0]),
            elements.broadcast(sums[:, 1]),
            *self.bounds,
        )
        gradient = mean * elements.broadcast(scales)
        if self.settings.clipvalue:
            limit = self.settings.clipvalue
            gradient = tf.clip_by_value(gradient, -limit, limit)
        l2 = self._l2(elements, noise)
        if l2 is not None and self.settings.l2_form == "inside":
            gradient, l2 = gradient + l2 * theta, None
        at = self._coefficients(elements, rate, t)._replace(l2=l2)
        return multiplier, *self.rule.direction(theta, gradient, multiplier, slots, at)

    def descended(self, elements, theta, u, norms, slots, rate, t):
        """θ and all slots after `Rule.descend`; norms of `None`: no trust ratio."""
        phi = 1.0 if norms is None else elements.broadcast(self.phi(norms, rate, t))
        at = self._coefficients(elements, rate, t)
        theta, changed = self.rule.descend(theta, u, phi, slots, at)
        return theta, {**slots, **changed}

    def phi(self, norms, rate, t):
        """Trust ratios `[variables]`, from Σ θ² and Σ u² of all shards."""
        norms = tf.sqrt(norms)
        if not self.adapts:
            return tf.ones_like(norms[:, 0])
        at = Coefficients(rate, t, tf.constant(self._decays, norms.dtype))
        phi = self.rule.trust(norms[:, 0], norms[:, 1], at)
        return tf.where(self._adapts, phi, tf.ones_like(phi))

    def _l2(self, elements, noise):
        """λ₂, or λ₂(1 − q); `None` if none of the variables has it."""
        if not any(self._l2s):
            return None
        l2 = elements.broadcast(tf.constant(self._l2s, self._dtype))
        return l2 if noise is None else l2 * noise

    def _coefficients(self, elements, rate, t):
        decays = tf.constant(self._decays, self._dtype)
        return Coefficients(rate, t, elements.broadcast(decays))
