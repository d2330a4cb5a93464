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
        self._owner = layout.owner[self._first : self._last]
        self._number = len(optimizer._trainable_variables)
        self._adapts = any(optimizer.adapts(index) for index in range(self._number))
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

    def joined_by(self, communicator):
        """The same for other workers, with empty slices."""
        return Slices(self._optimizer, communicator, self._layout)

    def _per_variable(self, *elements):
        """Sums `[variables, len(elements)]` of tensors `[blocks, BLOCK]`."""
        # XLA adds up the numbers of a row one by one; a product with ones is fast.
        ones = tf.ones([BLOCK], self._layout.dtype)
        sums = tf.stack([tf.linalg.matvec(e, ones) for e in elements], axis=1)
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
        # The spread of a rank's own micro-batches, where there are several: once for
        # each window, half as much again as without accumulation.
        accumulates = self._optimizer.gradient_accumulation_steps
        spreads = sent(moments.spread, "spread") if accumulates else None
        weights = None
        if equal_weight is None:
            weights = self._comm.from_owners(moments.weight[None], f"{self._name}.weight")
            weights = tf.ensure_shape(weights, [self._comm.workers])
        mean, r, sums = self._fused_statistics(means, spreads, weights, equal_weight)
        sums = self._comm.all_reduce(sums, f"{self._name}.sums")
        return tf.math.is_finite(tf.reduce_sum(sums[:, 2])), (mean, r, sums)

    def _statistics(self, means, spreads, weights, equal_weight):
        count = self._comm.workers
        groups = [
            Moments(*group)
            for group in zip(
                [None] * count if weights is None else tf.unstack(weights),
                tf.unstack(means),
                [None] * count if spreads is None else tf.unstack(spreads),
            )
        ]
        mean, variance = pooled(groups, equal_weight)
        r = gsnr(mean, variance, self._optimizer.samples)
        finite, counted = countable(mean, variance, r)
        return mean, r, self._per_variable(finite, counted, mean * mean, variance)

    # ---- update -----------------------------------------------------------------

    def update(self, with_gradient, reduced, rate, t):
        """Updates all variables; returns Σ mean² and Σ variance."""
        mean, r, sums = reduced
        optimizer = self._optimizer
        start, stop = self._first * BLOCK, self._last * BLOCK
        theta = self._layout.pack_range(optimizer._trainable_variables, start, stop)
        theta = tf.reshape(theta, [-1, BLOCK])
        slots = {name: tf.convert_to_tensor(s.slice) for name, s in self._state.items()}
        u, moved, norms = self._fused_direction(
            theta, mean, r, slots, sums, self._clip_scales(sums[:, 2]), rate, t
        )
        phi = self._trust_ratios(norms, rate, t)
        theta, further = self._fused_descend(theta, u, phi, moved, rate, t)
        moved = {**moved, **further}
        if len(with_gradient) < self._number:
            # A variable without a gradient is left alone, and so is its state.
            active = [index in with_gradient for index in range(self._number)]
            active = self._by_block(tf.constant(active))
            moved = {name: tf.where(active, s, slots[name]) for name, s in moved.items()}
        for name, value in moved.items():
            self._state[name].slice.assign(value)
        whole = self._comm.from_owners(theta, f"{self._name}.weights")
        whole = self._layout.unpack(tf.reshape(whole, [self._layout.size]))
        for index in with_gradient:
            variable = optimizer._trainable_variables[index]
            variable.assign(tf.cast(whole[index], variable.dtype))
        return tf.unstack(tf.reduce_sum(sums[:, 2:], axis=0))

    def _trust_ratios(self, norms, rate, t):
        """φ `[variables]`, from the slice's share of the squared norms of θ and u."""
        ones = tf.ones([self._number], self._layout.dtype)
        if not self._adapts:
            return ones
        norms = tf.sqrt(self._comm.all_reduce(norms, f"{self._name}.norms"))
        step = self._optimizer.step_of(rate, t, self._decay())
        phi = self._optimizer.trust(norms[:, 0], norms[:, 1], step)
        adapts = [self._optimizer.adapts(index) for index in range(self._number)]
        return tf.where(adapts, phi, ones)

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
        norms = self._per_variable(theta * theta, u * u) if self._adapts else None
        return u, slots, norms

    def _descend(self, theta, u, phi, slots, rate, t):
        phi = self._by_block(phi)
        return self._optimizer.descend(theta, u, phi, slots, self._step(rate, t))

    def report(self):
        """See `GSNROptimizer.sharding_report`."""
        bounds = self._comm.bounds(len(self._layout.owner))
        item, ranks = self._layout.dtype.size, self._comm.workers
        state = len(self.slots) * BLOCK * item
        lines = []
        for rank, (first, last) in enumerate(zip(bounds, bounds[1:])):
            own, rest = last - first, bounds[-1] - (last - first)
            # Its samples of the others' slices, then its slice to all others.
            samples = 2 if self._optimizer.gradient_accumulation_steps else 1
            sent = (samples * rest + (ranks - 1) * own) * BLOCK * item
            lines.append(
                f"rank {rank}: elements {first * BLOCK:,} to {last * BLOCK:,}, "
                f"{own * state:,} bytes of state, sends {sent:,} bytes an update"
            )
        return "\n".join(lines)
