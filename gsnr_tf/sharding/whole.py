"""The plain step: every worker has all parameters and updates them all."""

import functools

import tensorflow as tf

from gsnr_tf.sharding.part import Part
from gsnr_tf.sharding.program import Program, clip_scales
from gsnr_tf.stats import multiplier


class Whole:
    """Reduction and update of whole variables, for one optimizer.

    What tf.distribute and a single process use, and the reference for `Slices`.

    Attributes:
        slots: For each slot of the rule a list of variables, one for each variable of
            the model.
    """

    def __init__(self, optimizer, communicator, layout, slots):
        self._optimizer = optimizer
        self._comm = communicator
        self._layout = layout
        self.slots = slots
        self.watch = None
        parts = [Part(bucket, 0, bucket.blocks) for bucket in layout.buckets]
        self._programs = [Program(optimizer, part) for part in parts]

    # ---- as the holder of `Slots`, where ranks could have shared them out ------------

    count = 0

    def changes(self):
        """Loads are told by what is loaded: all state is in variables."""
        return 0

    def count_changes_from(self, number):
        """See `changes`."""

    def read(self, slot, index):
        return self.slots[slot][index].numpy()

    def write(self, slot, index, value):
        self.slots[slot][index].assign(value)

    # ---- within a step ---------------------------------------------------------------

    def reduce(self, moments, weighted, riders):
        """Whether the mean of all samples is finite; mean and variance of each bucket;
        the sum of all ranks' riders."""
        if self.watch:
            self.watch.mark(0, moments)
        return self._optimizer.reduce_whole(moments, weighted, riders)

    def update(self, active, reduced, rate, t):
        """Updates all variables; returns Σ mean² and Σ variance."""
        if self.watch:
            self.watch.mark(1, reduced)
            see = functools.partial(self._tables, rate, t)
            self.watch.record(lambda: self._comm.each(see, *reduced))
        gradients, multipliers, *totals = self._comm.each(self._weigh, *reduced)
        for index, has in enumerate(active):
            if has is False:
                continue
            self._comm.update(
                self._optimizer._trainable_variables[index],
                functools.partial(self._apply_rule, index, rate, t, has),
                gradients[index],
                multipliers[index],
            )
        return totals

    def _weigh(self, mean, variance):
        """Clipped gradient and multiplier of each variable, and the totals.

        Args:
            mean, variance: Lists of vectors, one for each bucket.
        """
        optimizer = self._optimizer
        weigh = functools.partial(
            multiplier,
            samples=optimizer.samples,
            gamma=optimizer.gamma,
            ceiling=optimizer.ceiling,
            estimator=optimizer.estimator,
        )
        means, variances = self._layout.unpack(mean), self._layout.unpack(variance)
        multipliers = [weigh(m, v) for m, v in zip(means, variances)]
        signal = tf.add_n([tf.reduce_sum(tf.square(bucket)) for bucket in mean])
        noise = tf.add_n([tf.reduce_sum(bucket) for bucket in variance])
        gradients = optimizer._clip_gradients(means)
        return gradients, multipliers, signal, noise

    def _tables(self, rate, t, means, variances):
        """What there is to see of each bucket: see `Watch.record`."""
        weighed = [
            program.weigh(*program.in_shape(mean, variance), self._optimizer.samples)
            for program, mean, variance in zip(self._programs, means, variances)
        ]
        scales = clip_scales(self._optimizer, [sums[:, 2] for _, sums in weighed])
        tables = []
        for program, mean, (r, sums), scale in zip(self._programs, means, weighed, scales):
            slots = {name: program.cut(slot) for name, slot in self.slots.items()}
            theta = program.pick(self._optimizer._trainable_variables)
            (mean,) = program.in_shape(mean)
            seen = program.seen(theta, mean, r, slots, sums, scale, rate, t)
            tables.append(program.table(sums, seen, rate, t))
        return tables

    def _apply_rule(self, index, rate, t, active, variable, gradient, r):
        optimizer = self._optimizer
        step = optimizer.step_of(rate, t, optimizer.decay_of(index))
        old = theta = tf.cast(variable, self._layout.dtype)
        before = {name: tf.convert_to_tensor(s[index]) for name, s in self.slots.items()}
        u, slots = optimizer.direction(theta, gradient, r, before, step)
        phi = 1.0
        if optimizer.adapts(index):
            phi = optimizer.trust(tf.norm(theta), tf.norm(u), step)
        theta, further = optimizer.descend(theta, u, phi, slots, step)
        slots = {**slots, **further}
        if active is not True:  # A tensor: no rank may have a gradient.
            theta = tf.where(active, theta, old)
            slots = {name: tf.where(active, new, before[name]) for name, new in slots.items()}
        variable.assign(tf.cast(theta, variable.dtype))
        for name, value in slots.items():
            self.slots[name][index].assign(value)

    def end_update(self):
        """To be called in a step after all else."""
        if self.watch:
            self.watch.mark(2, [])

    def state_bytes(self):
        """See `GSNROptimizer.state_bytes`."""
        return len(self.slots) * self._layout.size * self._layout.dtype.size

    def report(self):
        """See `GSNROptimizer.sharding_report`."""
        number = self._layout.size
        return (
            f"{self._comm.workers} worker(s), k={int(self._optimizer.samples)} samples an "
            f"update; each has all {number:,} elements and "
            f"{self.state_bytes():,} bytes of state; reduces "
            f"{2 * number * self._layout.dtype.size:,} bytes an update"
        )
