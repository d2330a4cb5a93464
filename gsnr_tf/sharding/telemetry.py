"""What a step records for monitors, in updates that are due and in no others."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.ops import control_flow_util

from gsnr_tf.comm.base import assign
from gsnr_tf.sharding.tables import TouchedRows
from gsnr_tf.stats import summary

# What the statistics do not have is taken from this many elements, evenly spread over
# each variable: a share and a norm are off by about 1 % then.
_SAMPLED, _SAMPLED_EACH = 2**16, 2**12
# Of a record, and of what `sampled_sums` adds to the statistics and trust ratios.
_COLUMNS = len(summary.FIELDS) + summary.R_BINS + summary.MULTIPLIER_BINS
_SAMPLED_COLUMNS = _COLUMNS - summary.FIELDS.index("informative") - 1


class Record(NamedTuple):
    """What was seen of one update.

    Attributes:
        update: Int, its number; 0 before the first.
        samples: Int, k.
        accumulation: Int, micro-batches of each worker.
        summary: `stats.summary.Summary`.
        times: Three floats, in seconds since the epoch: when this worker's samples
            were there, when those of all were reduced, and when the update was done.
    """

    update: int
    samples: int
    accumulation: int
    summary: summary.Summary
    times: list


class Telemetry:
    """A record of the last due update: the step fills it, a callback reads it.

    No part of the optimizer's state, and in no checkpoint.

    Args:
        communicator: The `Communicator`.
        layout: The `BucketLayout` of the variables.
        strategy: The `tf.distribute.Strategy` of the optimizer.
        every: Int, updates from record to record.
        sizes: Callable that returns, within a step, the number of the update that it
            makes, k, and the micro-batches of each worker.
    """

    def __init__(self, communicator, layout, strategy, every, sizes):
        self._comm = communicator
        self._sizes = sizes
        self.every = every
        self._shapes = [[len(part.indices), _SAMPLED_COLUMNS] for part in layout.parts]
        with tf.init_scope(), strategy.scope():
            shape = [len(layout.index_map), _COLUMNS]
            self._table = _variable(tf.zeros(shape, layout.dtype))
            # Number of the update, samples, accumulation steps.
            self._counts = _variable(tf.zeros([3], tf.int64))
            self._times = [_variable(tf.zeros([], tf.float64)) for _ in range(3)]
        # They come part by part.
        order = [index for part in layout.parts for index in part.indices]
        self._order = np.argsort(order)

    def record(self, tables):
        """Keeps what `tables()` gives, if this update is due.

        Args:
            tables: Callable that returns a tensor `[variables, columns]` for each
                bucket, columns as in `table`, on every replica.
        """

        def keep():
            found = self._comm.each(self._in_order, tables())
            counts = tf.stack([tf.cast(size, tf.int64) for size in self._sizes()])
            for variable, value in ((self._table, found), (self._counts, counts)):
                self._comm.update(variable, assign, value)
            return True

        tf.cond(self._due(), keep, lambda: False)

    def when_due(self, sampled):
        """What `sampled()` gives: `sampled_sums` of each bucket; zeros if none is due."""
        dtype = self._table.dtype
        zeros = lambda: [tf.zeros(shape, dtype) for shape in self._shapes]  # noqa: E731
        return tf.cond(self._due(), sampled, zeros)

    def _due(self):
        update, *_ = self._sizes()
        return tf.equal(tf.cast(update, tf.int64) % self.every, 0)

    def _in_order(self, tables):
        return tf.gather(tf.concat(tables, axis=0), self._order)

    def mark(self, point, after):
        """Notes when the tensors `after` are there, as point 0, 1 or 2 of the step."""
        now = clock(after)
        if point:
            # An operation that reads the clock may be ready, and not run, for a while.
            now = tf.maximum(now, self._times[point - 1])
        self._comm.update(self._times[point], assign, now)

    @property
    def update(self):
        """Int, the number of the update on record; 0 before the first."""
        return int(self._counts.numpy()[0])

    def read(self):
        """The `Record`."""
        table = self._table.numpy()
        fields, rest = np.split(table, [len(summary.FIELDS)], axis=1)
        counts = np.split(rest, [summary.R_BINS], axis=1)
        times = [float(time.numpy()) for time in self._times]
        sizes = (int(count) for count in self._counts.numpy())
        return Record(*sizes, summary.Summary(fields, *counts), times)


def _variable(value):
    first = tf.VariableAggregation.ONLY_FIRST_REPLICA
    return tf.Variable(value, trainable=False, aggregation=first, name="telemetry")


def clock(after):
    """Seconds since the epoch, float64, once the tensors `after` are there.

    NaN within XLA, which has no clock.
    """
    graph = tf.compat.v1.get_default_graph()
    if control_flow_util.GraphOrParentsInXlaContext(graph):
        return tf.constant(float("nan"), tf.float64)
    parts = tf.nest.flatten(after, expand_composites=True)
    with tf.control_dependencies([part for part in parts if part is not None]):
        return tf.timestamp()


class _Subsample:
    """Sums over the elements of a subsample, each of which stands for `weights` of them.

    A subclass sets `weights` `[n]`, `_variable_of` `[n]` and `_variables`, how many there are.
    """

    def sums(self, *vectors):
        """Sums over each variable of vectors of its elements, weighted."""
        weighted = tf.stack(vectors, axis=1) * tf.cast(self.weights, vectors[0].dtype)[:, None]
        return tf.math.unsorted_segment_sum(weighted, self._variable_of, self._variables)

    def counts(self, bins, weights, number):
        return summary.counts_by_bin(bins, weights, self._variable_of, self._variables, number)


class StridedSubsample(_Subsample):
    """Some elements of a `Shard`, evenly spread over its variables, in place of all.

    Args:
        shard: `Shard` of a bucket.
        variables: Int, how many variables the model has.
    """

    def __init__(self, shard, variables):
        most = min(_SAMPLED_EACH, max(_SAMPLED // variables, 256))
        positions, variable_of, weights = [], [], []
        for variable in range(len(shard.bucket.indices)):
            start, size = shard.bucket.span(variable)
            # An odd stride meets all columns of a matrix, whose width is rarely odd.
            stride = -(-size // most) | 1
            chosen = np.arange(start, start + size, stride)
            # For how many elements each stands.
            weight = size / max(len(chosen), 1)
            chosen = chosen[(chosen >= shard.start) & (chosen < shard.stop)] - shard.start
            positions.append(chosen.astype("int32"))
            variable_of.append(np.full(len(chosen), variable, "int32"))
            weights.append(np.full(len(chosen), weight))
        self._variables = len(shard.bucket.indices)
        self._shape = shard.shape
        self._positions, self._variable_of, self.weights = (
            np.concatenate(parts) for parts in (positions, variable_of, weights)
        )

    def of(self, vector):
        """The elements of the subsample of a tensor in the shape of the shard, or one that
        has a number for each row."""
        whole = tf.broadcast_to(vector, self._shape)
        return tf.gather(tf.reshape(whole, [-1]), self._positions)

    def broadcast(self, values):
        """From a number for each variable to one for each of its elements."""
        return tf.gather(values, self._variable_of)


class RowSample(_Subsample):
    """The first of the touched rows of some tables, in place of all.

    They come as they were looked up, which has nothing to do with what is recorded.

    Args:
        tables: `Tables`.
        keys: Integer tensor, those of all touched rows.
        variables: Int, how many variables the model has.

    Attributes:
        rows: The `TouchedRows` that it has.
    """

    def __init__(self, tables, keys, variables):
        most = min(_SAMPLED_EACH * len(tables.indices), max(_SAMPLED // variables, 256))
        self._most = max(most // tables.width, 64)
        self._variables = len(tables.indices)
        self._width = tables.width
        own = self.first(keys)
        table = tables.table_of(own)
        self.rows = TouchedRows(tables, table)
        self._variable_of = tf.repeat(table, tables.width)
        # For how many elements each stands.
        share = tf.math.divide_no_nan(*(tf.cast(tf.size(k), tables.dtype) for k in (keys, own)))
        self.weights = tf.fill(tf.shape(self._variable_of), share)

    def first(self, rows):
        """The rows of the sample, of all."""
        return rows[: self._most]

    def of(self, vector):
        """The elements of these rows, of `[rows, width]` or `[rows, 1]`."""
        many = tf.shape(vector)[0]
        return tf.reshape(tf.broadcast_to(vector, [many, self._width]), [-1])


def sampled_sums(sample, mean, r, multiplier, bounds, theta, u):
    """What there is to see of a shard beyond its statistics.

    Args:
        sample: `StridedSubsample`, or `RowSample`.
        mean, r, multiplier, theta, u: Tensors `[n]`, of its elements.
        bounds: Pair `(gamma, ceiling)`.

    Returns:
        Tensor `[variables of the bucket, columns]` whose sum over workers are the
        fields from "informative" to "u_sq", and the counts.
    """
    known = tf.cast(tf.not_equal(mean, 0), mean.dtype)
    sums = sample.sums(
        known,
        *summary.multiplier_terms(multiplier, known, *bounds),
        tf.square(theta),
        tf.square(u),
    )
    weights = known * tf.cast(sample.weights, mean.dtype)
    bins = (summary.r_bin(r), summary.multiplier_bin(multiplier, *bounds))
    numbers = (summary.R_BINS, summary.MULTIPLIER_BINS)
    counts = [sample.counts(b, weights, number) for b, number in zip(bins, numbers)]
    return tf.concat([sums, *counts], axis=1)


def table(statistics, sampled, phi):
    """The columns of a record, in the order of `Summary`.

    Args:
        statistics: `[variables, 4]`: what `UpdateKernels.statistics` sums up.
        sampled: What `sampled_sums` gives. Both of all workers.
        phi: Trust ratios `[variables]`.
    """
    fields = len(summary.FIELDS) - 1 - statistics.shape[1]
    columns = [statistics, sampled[:, :fields], phi[:, None], sampled[:, fields:]]
    return tf.concat(columns, axis=1)
