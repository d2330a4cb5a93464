"""What a rank computes on its part of a bucket: a few programs for XLA.

Each is one launch in place of a chain of small operations for each variable, and
updates the state where it lies. Parts of equal shape share their programs.
"""

import functools

import tensorflow as tf

from gsnr_tf.sharding import watch
from gsnr_tf.stats import (
    ESTIMATORS,
    Moments,
    clip_multiplier,
    countable,
    gsnr_of_share,
    merged,
)


class Program:
    """The statistics and the rule on a `Part`.

    Args:
        optimizer: The `GSNROptimizer`.
        part: The `Part`.

    Attributes:
        kind: What parts must have in common to share a program.
    """

    def __init__(self, optimizer, part):
        self._optimizer = optimizer
        self._part = part
        bucket = part.bucket
        self._decays = tuple(optimizer.decay_of(index) for index in bucket.indices)
        self._adapts = tuple(optimizer.adapts(index) for index in bucket.indices)
        self.kind = (tuple(bucket.shapes), bucket.weights_dtype, self._decays, self._adapts)
        fused = functools.partial(tf.function, jit_compile=True, autograph=False)
        self.statistics = fused(self._statistics)
        self.direction = fused(self._direction)
        self.descend = fused(self._descend)
        self.weigh = fused(self._weigh)
        self.seen = fused(self._seen)

    def pick(self, variables):
        """Of the optimizer's variables those of the bucket, as tensors."""
        return [tf.convert_to_tensor(v) for v in self._part.bucket.pick(variables)]

    def cut(self, variables):
        """The part of the bucket's variables, in its shape."""
        return self._part.cut(self.pick(variables))

    def in_shape(self, *vectors):
        """Flat vectors in the shape of the part."""
        return [tf.reshape(vector, self._part.shape) for vector in vectors]

    def _statistics(self, means, spreads, weights, number):
        """Mean, r, and `[variables, 4]`: Σ r, how many count, Σ mean², Σ variance.

        r is what the optimizer's estimator gives.

        Args:
            means: `[groups, elements]`, the mean gradient of each worker, or host.
            spreads: The same of Σ w(g − mean)² within each of them, or `None` for 0.
            weights: `[groups]`.
            number: How many samples there were.
        """
        dtype = self._part.bucket.dtype
        whole = _merged(means, spreads, weights, dtype)
        mean, variance = self.in_shape(whole.mean, whole.spread / whole.weight)
        return mean, *self._weigh(mean, variance, number)

    def _weigh(self, mean, variance, number):
        """r, and the sums of `statistics`."""
        r = ESTIMATORS[self._optimizer.estimator](mean, variance, number)
        finite, counted = countable(mean, variance, r)
        return r, self._part.sums(finite, counted, mean * mean, variance)

    def _direction(self, variables, mean, r, slots, sums, scales, rate, t, active):
        """Updates the slots; returns u and `[variables, 2]`: Σ θ², Σ u².

        Where no variable has a trust ratio there is no norm to wait for, and it
        returns the part's new weights and `None`.

        Args:
            variables: The bucket's variables, whole.
            mean, r: From `statistics`.
            slots: Dict of `tf.Variable`.
            sums: What `statistics` gives, of all slices.
            scales: `[variables]`, from clipping by norm.
            rate, t: Scalars.
            active: `[variables]`, which have a gradient; `None`: all.
        """
        optimizer, part = self._optimizer, self._part
        old = part.cut(variables)
        _, u, moved = self._toward(part, old, mean, r, slots, sums, scales, rate, t)
        if any(self._adapts):
            self._keep(slots, moved, active)
            return u, part.sums(old * old, u * u)
        step = self._step(part, rate, t)
        theta, further = optimizer.descend(old, u, 1.0, moved, step)
        self._keep(slots, {**moved, **further}, active)
        return self._sendable(theta, old, active), None

    def _toward(self, part, theta, mean, r, slots, sums, scales, rate, t):
        """Multiplier, u, and the slots after the step, of a part or what is picked."""
        optimizer = self._optimizer
        r = clip_multiplier(
            r,
            part.spread(sums[:, 0]),
            part.spread(sums[:, 1]),
            optimizer.gamma,
            optimizer.ceiling,
        )
        gradient = mean * part.spread(scales)
        if optimizer.clipvalue:
            limit = optimizer.clipvalue
            gradient = tf.clip_by_value(gradient, -limit, limit)
        old = {name: tf.convert_to_tensor(slot) for name, slot in slots.items()}
        step = self._step(part, rate, t)
        return r, *optimizer.direction(theta, gradient, r, old, step)

    def _seen(self, variables, mean, r, slots, sums, scales, rate, t):
        """`watch.sums_and_counts` of a step that `direction` has yet to make."""
        optimizer = self._optimizer
        picked = watch.Picked(self._part, len(optimizer._trainable_variables))
        mean, r = picked.of(mean), picked.of(r)
        theta = picked.of(self._part.cut(variables))
        slots = {name: picked.of(slot) for name, slot in slots.items()}
        multiplier, u, _ = self._toward(
            picked, theta, mean, r, slots, sums, scales, rate, t
        )
        bounds = (optimizer.gamma, optimizer.ceiling)
        if optimizer.estimator == "robust":
            r = gsnr_of_share(r, optimizer.samples)
        return watch.sums_and_counts(picked, mean, r, multiplier, bounds, theta, u)

    def table(self, sums, seen, rate, t):
        """`watch.table` of `statistics` and `seen` of all slices."""
        norms = seen[:, 4:6]
        return watch.table(sums, seen, self._phi(norms, rate, t))

    def _phi(self, norms, rate, t):
        """Trust ratios `[variables]`, from Σ θ² and Σ u² of all slices."""
        norms = tf.sqrt(norms)
        if not any(self._adapts):
            return tf.ones_like(norms[:, 0])
        decays = tf.constant(self._decays, norms.dtype)
        phi = self._optimizer.trust(
            norms[:, 0], norms[:, 1], self._optimizer.step_of(rate, t, decays)
        )
        return tf.where(self._adapts, phi, tf.ones_like(phi))

    def _descend(self, variables, u, norms, slots, rate, t, active):
        """Updates the slots; returns the part's new weights.

        Args:
            norms: What `direction` gives, of all slices.
        """
        optimizer, part = self._optimizer, self._part
        phi = self._phi(norms, rate, t)
        old = {name: tf.convert_to_tensor(slot) for name, slot in slots.items()}
        before = part.cut(variables)
        theta, moved = optimizer.descend(
            before, u, part.spread(phi), old, self._step(part, rate, t)
        )
        self._keep(slots, moved, active)
        return self._sendable(theta, before, active)

    def _step(self, part, rate, t):
        decays = tf.constant(self._decays, self._part.bucket.dtype)
        return self._optimizer.step_of(rate, t, part.spread(decays))

    def _keep(self, slots, moved, active):
        """A variable without a gradient is left alone, and so is its state."""
        for name, value in moved.items():
            slots[name].assign(self._of_active(value, slots[name], active))

    def _of_active(self, value, old, active):
        return value if active is None else tf.where(self._part.spread(active), value, old)

    def _sendable(self, theta, old, active):
        theta = self._of_active(theta, old, active)
        return tf.cast(tf.reshape(theta, [-1]), self._part.bucket.weights_dtype)


def _merged(means, spreads, weights, dtype):
    """`Moments` of all groups, from rows."""

    def rows(tensor):
        if tensor is None:
            return [None] * means.shape[0]
        return tf.unstack(tf.cast(tensor, dtype))

    return merged(list(map(Moments, tf.unstack(weights), rows(means), rows(spreads))))


@functools.partial(tf.function, jit_compile=True, autograph=False)
def join(means, spreads, weights, dtype, with_spread):
    """Mean and spread of the samples of several ranks, which then count as a group.

    Args:
        means, spreads, weights: As for `Program.statistics`.
        dtype: Of statistics; the mean goes on in that of `means`.
        with_spread: Whether to tell the spread.
    """
    whole = _merged(means, spreads, weights, dtype)
    return tf.cast(whole.mean, means.dtype), whole.spread if with_spread else None


def clip_scales(optimizer, squares):
    """What clipping by norm multiplies gradients by, `[variables]` of each bucket.

    Args:
        optimizer: The `GSNROptimizer`.
        squares: List of Σ mean² `[variables]`, of each bucket.
    """
    if optimizer.clipnorm:
        limit = optimizer.clipnorm
        return [limit / tf.maximum(tf.sqrt(square), limit) for square in squares]
    scale = tf.ones([], squares[0].dtype)
    if optimizer.global_clipnorm:
        norm = tf.sqrt(sum(tf.reduce_sum(square) for square in squares))
        scale = optimizer.global_clipnorm / tf.maximum(norm, optimizer.global_clipnorm)
    return [tf.fill(square.shape, scale) for square in squares]
