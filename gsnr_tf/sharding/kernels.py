"""What a worker computes on its shard of a bucket: a few programs for XLA.

Each is one launch in place of a chain of small operations for each variable. Shards of
equal shape share their programs.
"""

import functools

import tensorflow as tf

from gsnr_tf.sharding import telemetry
from gsnr_tf.sharding.arithmetic import Arithmetic, Statistics
from gsnr_tf.stats import merged


class UpdateKernels:
    """The statistics and the rule on a `Shard`.

    The slots of a rule are given as a dict of tensors, or of `tf.Variable`s that are
    updated where they lie, in the shape of the shard.

    Args:
        rule: The `Rule`.
        settings: `Settings`.
        by_variable: List of `VariableSettings`, of all variables of the model.
        shard: The `Shard`.
        compiled: Whether XLA compiles them.

    Attributes:
        kind: What shards must have in common to share kernels.
        math: The `Arithmetic`.
    """

    def __init__(self, rule, settings, by_variable, shard, compiled):
        self._shard = shard
        bucket = shard.bucket
        self._number_of_variables = len(by_variable)
        own = bucket.pick(by_variable)
        self.math = Arithmetic(rule, settings, own, bucket.dtype, bucket.by_row)
        self.kind = (tuple(bucket.shapes), bucket.weights_dtype, tuple(own))
        as_program = fused if compiled else lambda kernel: kernel
        self.statistics = as_program(self._statistics)
        self.weigh = as_program(self._weigh)
        self.direction = as_program(self._direction)
        self.descend = as_program(self._descend)
        self.update = as_program(self._update) if rule.compiled else self._update
        self.sampled_sums = as_program(self._sampled_sums)

    # ---- statistics ------------------------------------------------------------------

    def _statistics(self, means, m2s, weights, number):
        """`Statistics` of samples.

        Args:
            means: `[groups, elements]`, the mean gradient of each worker, or host.
            m2s: The same of Σ w(g − mean)² within each of them, or `None` for 0.
            weights: `[groups]`.
            number: How many samples there were.
        """
        whole = merged(tf.cast(means, self._shard.bucket.dtype), m2s, weights)
        return self._weigh(whole.mean, whole.m2 / whole.weight, number)

    def _weigh(self, mean, variance, number):
        """`Statistics` from mean and variance, flat vectors."""
        return self.math.weigh(self._shard, *self._shard.in_shape(mean, variance), number)

    # ---- the rule, in two phases where norms have to be summed over shards -----------

    def _direction(self, variables, statistics, slots, scales, rate, t, active):
        """Updates the slots; returns u and `[variables, 2]`: Σ θ², Σ u².

        Where no variable has a trust ratio there is no norm to wait for, and it
        returns the shard's new weights and `None`.

        Args:
            variables: The bucket's variables, whole.
            statistics: `Statistics`, with the sums of all shards.
            slots: Dict of `tf.Variable`.
            scales: `[variables]`, from clipping by norm.
            rate, t: Scalars.
            active: `[variables]`, which have a gradient; `None`: all.
        """
        theta = self._shard.cut(variables)
        values = _values(slots)
        _, u, moved = self.math.toward(self._shard, theta, statistics, values, scales, rate, t)
        if self.math.adapts:
            self._keep(slots, moved, active)
            return u, self._shard.sums(theta * theta, u * u)
        new, moved = self.math.descended(self._shard, theta, u, None, moved, rate, t)
        self._keep(slots, moved, active)
        return self._sendable(new, theta, active), None

    def _descend(self, variables, u, norms, slots, rate, t, active):
        """Updates the slots; returns the shard's new weights.

        Args:
            norms: What `direction` gives, of all shards.
        """
        theta = self._shard.cut(variables)
        old = _values(slots)
        new, moved = self.math.descended(self._shard, theta, u, norms, old, rate, t)
        changed = {name: value for name, value in moved.items() if value is not old[name]}
        self._keep(slots, changed, active)
        return self._sendable(new, theta, active)

    def _update(self, variables, statistics, slots, scales, rate, t, active):
        """Both phases at once, where the shard is the whole bucket. Changes nothing.

        Args:
            slots: Dict of lists of tensors, one for each of the bucket's variables.

        Returns:
            The new variables, and slots, as they were given.
        """
        shard = self._shard
        theta, slots = shard.cut(variables), {k: shard.cut(s) for k, s in slots.items()}
        _, u, moved = self.math.toward(shard, theta, statistics, slots, scales, rate, t)
        norms = shard.sums(theta * theta, u * u) if self.math.adapts else None
        new, moved = self.math.descended(shard, theta, u, norms, moved, rate, t)
        new = self._of_active(new, theta, active)
        moved = {k: self._of_active(value, slots[k], active) for k, value in moved.items()}
        return self._by_variable(new), {k: self._by_variable(s) for k, s in moved.items()}

    # ---- pieces of them --------------------------------------------------------------

    def _keep(self, slots, moved, active):
        """A variable without a gradient is left alone, and so is its state."""
        for name, value in moved.items():
            slots[name].assign(self._of_active(value, slots[name], active))

    def _of_active(self, value, old, active):
        if active is None:
            return value
        return tf.where(self._shard.broadcast(active), value, old)

    def _sendable(self, theta, old, active):
        theta = self._of_active(theta, old, active)
        return tf.cast(tf.reshape(theta, [-1]), self._shard.bucket.weights_dtype)

    def _by_variable(self, vector):
        return self._shard.bucket.unpack(tf.reshape(vector, [-1]))

    # ---- telemetry -------------------------------------------------------------------

    def _sampled_sums(self, variables, statistics, slots, scales, rate, t, number):
        """`telemetry.sampled_sums` of a step that the rule has yet to make.

        Args:
            slots: Dict of tensors in the shape of the shard.
            number: How many samples there were.
        """
        sample = telemetry.StridedSubsample(self._shard, self._number_of_variables)
        mean, r = sample.of(statistics.mean), sample.of(statistics.r)
        noise = None if statistics.noise is None else sample.of(statistics.noise)
        theta = sample.of(self._shard.cut(variables))
        slots = {name: sample.of(slot) for name, slot in slots.items()}
        sampled = Statistics(mean, r, noise, statistics.sums)
        multiplier, u, _ = self.math.toward(sample, theta, sampled, slots, scales, rate, t)
        r = self.math.gsnr(r, number)
        return telemetry.sampled_sums(sample, mean, r, multiplier, self.math.bounds, theta, u)


fused = functools.partial(tf.function, jit_compile=True, autograph=False)


def _values(slots):
    return {name: tf.convert_to_tensor(slot) for name, slot in slots.items()}


@fused
def merge_workers(means, m2s, weights, dtype, with_m2):
    """Mean and m2 of the samples of several ranks, which then count as a group.

    Args:
        means, m2s, weights: As for `UpdateKernels.statistics`.
        dtype: Of statistics; the mean goes on in that of `means`.
        with_m2: Whether to give m2 as well.
    """
    whole = merged(tf.cast(means, dtype), m2s, weights)
    return tf.cast(whole.mean, means.dtype), whole.m2 if with_m2 else None


def clip_scales(settings, squares):
    """What clipping by norm multiplies gradients by, `[variables]` of each bucket.

    Args:
        settings: `Settings`.
        squares: List of Σ mean² `[variables]`, of each bucket.
    """
    if settings.clipnorm:
        limit = settings.clipnorm
        return [limit / tf.maximum(tf.sqrt(square), limit) for square in squares]
    scale = tf.ones([], squares[0].dtype)
    if settings.global_clipnorm:
        norm = tf.sqrt(sum(tf.reduce_sum(square) for square in squares))
        scale = settings.global_clipnorm / tf.maximum(norm, settings.global_clipnorm)
    return [tf.fill(square.shape, scale) for square in squares]
