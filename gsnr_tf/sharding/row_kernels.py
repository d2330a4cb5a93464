"""What a worker computes on the rows of tables that an update touches.

How many rows there are is known at run time alone, and XLA compiles for shapes that are
known before. So rows go through the compiled programs a fixed number at a time, which also
keeps them in the cache; the last ones are filled up.
"""

from typing import NamedTuple

import tensorflow as tf

from gsnr_tf.sharding import telemetry
from gsnr_tf.sharding.arithmetic import Arithmetic
from gsnr_tf.sharding.kernels import fused
from gsnr_tf.sharding.tables import TouchedRows

# Elements that go at a time: a dozen tensors of them fit a core's cache.
_ELEMENTS = 2**15


class RowStatistics(NamedTuple):
    """What the samples say of the rows that they touch.

    Attributes:
        keys: Integer tensor `[rows]`.
        mean, variance: Tensors `[rows, width]`.
        sums: `[tables, 4]`, as of `Statistics`.
    """

    keys: tf.Tensor
    mean: tf.Tensor
    variance: tf.Tensor
    sums: tf.Tensor


class RowKernels:
    """The statistics and the rule on touched rows.

    The slots of a row lie side by side, `[rows, slots × width]`, in the order of the rule's
    names: in memory that is one place to look for, not one for each slot.

    Args:
        rule: The `Rule`.
        settings: `Settings`.
        by_variable: List of `VariableSettings`, of all variables of the model.
        tables: The `Tables`.
        compiled: Whether XLA compiles them.

    Attributes:
        math: The `Arithmetic`.
    """

    def __init__(self, rule, settings, by_variable, tables, compiled):
        self.math = Arithmetic(
            rule, settings, tables.pick(by_variable), tables.dtype, tables.by_row
        )
        self._tables = tables
        self._names = rule.slots
        self._at_a_time = max(1, _ELEMENTS // tables.width) if compiled else None
        self._variables = len(by_variable)
        if compiled:
            self._weigh, self._toward = fused(self._weigh), fused(self._toward)
            self._descend = fused(self._descend)

    def statistics(self, moments, number):
        """`RowStatistics` of all samples.

        Args:
            moments: `SparseMoments` of them.
            number: How many samples there were.
        """
        variance = moments.m2 / moments.weight
        rows = [moments.mean, variance]
        _, sums = self._by_rows(self._weigh, [], moments.keys, rows, 4, number)
        return RowStatistics(moments.keys, moments.mean, variance, sums)

    def toward(self, statistics, theta, slots, scales, rate, t, number):
        """The step up to where norms have to be summed over shards.

        Args:
            statistics: `RowStatistics`, with the sums of all shards.
            theta: The rows as they are, `[rows, width]`.
            slots: Their slots.
            scales, rate, t: As for `Arithmetic.toward`.
            number: How many samples there were.

        Returns:
            `(u, slots, norms)`: norms are `[tables, 2]`, Σ θ² and Σ u²; without a trust
            ratio u is the new rows and norms are `None`.
        """
        rows = [statistics.mean, statistics.variance, theta, slots]
        shared = statistics.sums, scales, rate, t, number
        (u, slots), norms = self._by_rows(
            self._toward, [1, len(self._names)], statistics.keys, rows, 2, *shared
        )
        return u, slots, norms if self.math.adapts else None

    def descend(self, keys, theta, u, slots, norms, rate, t):
        """The new rows, and slots, once the norms of all shards are known."""
        rows = [theta, u, slots]
        (theta, slots), _ = self._by_rows(
            self._descend, [1, len(self._names)], keys, rows, 2, norms, rate, t
        )
        return theta, slots

    def _apart(self, slots):
        parts = tf.split(slots, len(self._names), axis=1) if self._names else []
        return dict(zip(self._names, parts))

    def _together(self, slots, theta):
        if not self._names:
            return theta[:, :0]
        return tf.concat([slots[name] for name in self._names], axis=1)

    # ---- programs on some rows: `(tensors of rows, sums)` ------------------------------

    def _weigh(self, table, rows, number):
        return [], self.math.weigh(TouchedRows(self._tables, table), *rows, number).sums

    def _toward(self, table, rows, sums, scales, rate, t, number):
        touched = TouchedRows(self._tables, table)
        mean, variance, theta, slots = rows
        slots = self._apart(slots)
        # Anew: r of all rows would be one more tensor to keep, and costs nothing here.
        statistics = self.math.weigh(touched, mean, variance, number)._replace(sums=sums)
        _, u, slots = self.math.toward(touched, theta, statistics, slots, scales, rate, t)
        norms = tf.zeros([len(self._tables.indices), 2], theta.dtype)
        if self.math.adapts:
            norms = touched.sums(theta * theta, u * u)
        else:
            u, slots = self.math.descended(touched, theta, u, None, slots, rate, t)
        return [u, self._together(slots, theta)], norms

    def _descend(self, table, rows, norms, rate, t):
        touched = TouchedRows(self._tables, table)
        theta, u, slots = rows
        slots = self._apart(slots)
        theta, slots = self.math.descended(touched, theta, u, norms, slots, rate, t)
        return [theta, self._together(slots, theta)], tf.zeros_like(norms)

    def _by_rows(self, program, outputs, keys, rows, columns, *shared):
        """What a program gives of all rows, and the sums of what it sums up.

        Args:
            program: One of the above, or what it is compiled to.
            outputs: List of ints: of the tensors of rows that it gives how wide they are,
                in widths of a row.
            keys: `[rows]`.
            rows: List of tensors of rows.
            columns: Int, of its sums.
            shared: What it is given besides, the same for all rows.
        """
        table = self._tables.table_of(keys)
        if self._at_a_time is None:
            return program(table, rows, *shared)
        number, many = tf.size(keys), self._at_a_time
        width, dtype = self._tables.width, self._tables.dtype
        # At least once: for no rows at all there is nothing else that gives the shapes.
        times = tf.maximum(-(-number // many), 1)
        made = [tf.TensorArray(dtype, times, element_shape=[many, n * width]) for n in outputs]

        def some(time, made, total):
            start = time * many
            stop = tf.minimum(start + many, number)
            missing = start + many - stop
            own = tf.pad(table[start:stop], [[0, missing]], constant_values=-1)
            own = tf.ensure_shape(own, [many])
            parts = [
                tf.ensure_shape(tf.pad(r[start:stop], [[0, missing], [0, 0]]), [many, r.shape[1]])
                for r in rows
            ]
            found, sums = program(own, parts, *shared)
            made = [array.write(time, part) for array, part in zip(made, found)]
            return time + 1, made, total + sums

        total = tf.zeros([len(self._tables.indices), columns], dtype)
        _, made, total = tf.while_loop(
            lambda time, *_: time < times, some, [0, made, total], parallel_iterations=1
        )
        return [array.concat()[:number] for array in made], total

    # ---- telemetry ---------------------------------------------------------------------

    def sampled_sums(self, theta, statistics, slots, scales, rate, t, number):
        """`telemetry.sampled_sums` of a step that the rule has yet to make, of the first of
        the rows; arguments as of `toward`."""
        sample = telemetry.RowSample(self._tables, statistics.keys, self._variables)
        rows = sample.rows
        mean, variance = sample.first(statistics.mean), sample.first(statistics.variance)
        theta = sample.first(theta)
        slots = self._apart(sample.first(slots))
        found = self.math.weigh(rows, mean, variance, number)._replace(sums=statistics.sums)
        multiplier, u, _ = self.math.toward(rows, theta, found, slots, scales, rate, t)
        r = self.math.gsnr(found.r, number)
        parts = [sample.of(vector) for vector in (mean, r, multiplier)]
        return telemetry.sampled_sums(
            sample, *parts, self.math.bounds, sample.of(theta), sample.of(u)
        )
