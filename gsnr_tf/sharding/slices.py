"""The step at the price of a plain allreduce.

    gradients → alltoall → all samples of the own slice → statistics, rule, state
    on the slice → allgather of the weights

An allreduce moves 2·N·(k−1)/k numbers: it adds up slices, then sends the sums round.
Here the first half sends the samples themselves, so that the owner of a slice takes
their exact variance without a second reduction, and the second half sends weights.
Each rank computes the rule, and keeps its state, for 1/k of the parameters.

What concerns a whole variable crosses slices as one number: sums for the mean of r and
for clipping in one short allreduce, norms for trust ratios in another.
"""

import functools

import tensorflow as tf

from gsnr_tf.sharding.layout import BLOCK
from gsnr_tf.sharding.state import SliceState, SlotView
from gsnr_tf.stats import Moments, clip_multiplier, countable, gsnr, pooled


class Slices:
    """Reduction and update by owners of slices, for one optimizer.

    Args:
        optimizer: The `GSNROptimizer`, built but for its slots.
        communicator: A `Communicator` that has owners.
        layout: The `FlatLayout` of the variables.

    Attributes:
        slots: For each slot of the rule a list of `SlotView`, one for each variable
            of the model.
    """

    def __init__(self, optimizer, communicator, layout):
        self._optimizer = optimizer
        self._comm = communicator
        self._layout = layout
        self._name = f"gsnr.{optimizer.name}"
        self._first, self._last = communicator.own_rows(len(layout.owner))
        self._owner = tf.constant(layout.owner[self._first : self._last])
        self._number = len(optimizer._trainable_variables)
        self._state = {
            slot: SliceState(slot, communicator, layout) for slot in optimizer.slots
        }
        self.slots = {
            slot: [SlotView(state, index) for index in range(self._number)]
            for slot, state in self._state.items()
        }
        fused = functools.partial(tf.function, jit_compile=True, autograph=False)
        # One launch for each stage, in place of a chain of small operations for each
        # variable.
        self._fused_statistics = fused(self._statistics)
        self._fused_direction = fused(self._direction)
        self._fused_descend = fused(self._descend)

    def _per_variable(self, *elements):
        """Sums `[variables, len(elements)]` of tensors `[blocks, BLOCK]`."""
        sums = tf.stack([tf.reduce_sum(e, axis=1) for e in elements], axis=1)
        return tf.math.unsorted_segment_sum(sums, self._owner, self._number)

    def _by_block(self, values):
        """From `[variables]` to `[blocks, 1]`."""
        return tf.gather(values, self._owner)[:, None]

    # ---- reduce -----------------------------------------------------------------

    def reduce(self, moments, equal_weight):
        """Whether all is finite; mean and r of the slice, and sums of each variable."""

        def sent(flat, name):
            rows = tf.reshape(flat, [len(self._layout.owner), BLOCK])
            return self._comm.to_owners(rows, f"{self._name}.{name}")

        means = sent(moments.mean, "mean")
        # The spread of a rank's own micro-batches, where there are several.
        accumulates = self._optimizer.gradient_accumulation_steps
        spreads = sent(moments.spread, "spread") if accumulates else None
        weights = None
        if equal_weight is None:
            weights = self._comm.from_owners(moments.weight[None], f"{self._name}.weight")
        total = None if weights is not None else equal_weight * self._comm.workers
        mean, r, sums = self._fused_statistics(means, spreads, weights, total)
        sums = self._comm.all_reduce(sums, f"{self._name}.sums")
        per_variable, (noise, broken) = sums[:-2], tf.unstack(sums[-2:])
        per_variable = tf.reshape(per_variable, [self._number, 3])
        return tf.equal(broken, 0), (mean, r, per_variable, noise)

    def _statistics(self, means, spreads, weights, total):
        mean, variance = pooled(Moments(weights, means, spreads), total)
        r = gsnr(mean, variance, self._optimizer.samples)
        finite, counted = countable(mean, variance, r)
        sums = self._per_variable(finite, counted, tf.square(mean))
        broken = tf.logical_not(tf.math.is_finite(mean))
        broken = tf.reduce_sum(tf.cast(broken, mean.dtype))
        totals = tf.stack([tf.reduce_sum(variance), broken])
        return mean, r, tf.concat([tf.reshape(sums, [-1]), totals], axis=0)

    # ---- update -----------------------------------------------------------------

    def update(self, with_gradient, reduced, rate, t):
        """Updates all variables; returns Σ mean² and Σ variance."""
        mean, r, sums, noise = reduced
        optimizer = self._optimizer
        start, stop = self._first * BLOCK, self._last * BLOCK
        theta = self._layout.pack_range(optimizer._trainable_variables, start, stop)
        theta = tf.reshape(theta, [-1, BLOCK])
        slots = {name: tf.convert_to_tensor(s.slice) for name, s in self._state.items()}
        u, moved, norms = self._fused_direction(
            theta, mean, r, slots, sums, self._clip_scales(sums[:, 2]), rate, t
        )
        phi = self._trust_ratios(norms, rate, t)
        active = [index in set(with_gradient) for index in range(self._number)]
        theta, moved = self._fused_descend(theta, u, phi, slots, moved, rate, t, tuple(active))
        for name, value in moved.items():
            self._state[name].slice.assign(value)
        whole = self._comm.from_owners(theta, f"{self._name}.weights")
        whole = self._layout.unpack(tf.reshape(whole, [self._layout.size]))
        for index in with_gradient:
            variable = optimizer._trainable_variables[index]
            variable.assign(tf.cast(whole[index], variable.dtype))
        return tf.reduce_sum(sums[:, 2]), noise

    def _trust_ratios(self, norms, rate, t):
        """φ `[variables]`, from the slice's share of the squared norms of θ and u."""
        optimizer = self._optimizer
        ones = tf.ones([self._number], norms.dtype)
        adapts = [optimizer.adapts(index) for index in range(self._number)]
        if not any(adapts):
            return ones
        norms = tf.sqrt(self._comm.all_reduce(norms, f"{self._name}.norms"))
        step = optimizer.step_of(rate, t, self._decay())
        return tf.where(adapts, optimizer.trust(norms[:, 0], norms[:, 1], step), ones)

    def _decay(self):
        """Weight decay `[variables]`."""
        decays = [self._optimizer.decay_of(index) for index in range(self._number)]
        return tf.constant(decays, self._layout.dtype)

    def _clip_scales(self, squares):
        """What clipping by norm multiplies each variable's gradient by `[variables]`."""
        optimizer = self._optimizer
        if optimizer.clipnorm:
            return optimizer.clipnorm / tf.maximum(tf.sqrt(squares), optimizer.clipnorm)
        if optimizer.global_clipnorm:
            norm = tf.sqrt(tf.reduce_sum(squares))
            scale = optimizer.global_clipnorm / tf.maximum(norm, optimizer.global_clipnorm)
            return tf.fill([self._number], scale)
        return tf.ones([self._number], squares.dtype)

    def _step(self, rate, t):
        return self._optimizer.step_of(rate, t, self._by_block(self._decay()))

    def _direction(self, theta, mean, r, slots, sums, scales, rate, t):
        optimizer = self._optimizer
        r = clip_multiplier(
            r,
            self._by_block(sums[:, 0]),
            self._by_block(sums[:, 1]),
            optimizer.gamma,
            optimizer.ceiling,
        )
        gradient = mean * self._by_block(scales)
        if optimizer.clipvalue:
            gradient = tf.clip_by_value(
                gradient, -optimizer.clipvalue, optimizer.clipvalue
            )
        u, slots = optimizer.direction(theta, gradient, r, slots, self._step(rate, t))
        return u, slots, self._per_variable(tf.square(theta), tf.square(u))

    def _descend(self, theta, u, phi, before, slots, rate, t, active):
        step = self._step(rate, t)
        new, slots = self._optimizer.descend(theta, u, self._by_block(phi), slots, step)
        if not all(active):
            # A variable without a gradient is left alone, its state as well.
            kept = self._by_block(tf.constant(active))
            new = tf.where(kept, new, theta)
            slots = {name: tf.where(kept, s, before[name]) for name, s in slots.items()}
        return new, slots
