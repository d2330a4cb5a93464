"""The exchange in which every worker has all parameters and updates them all.

    gradients → allreduce of means, then of deviations about them → statistics, rule,
    state, all on every worker

What replicas and a single process use, and ranks with `sharding="none"`. By themselves
ranks of a small model get all samples by one collective, as each costs more than the rest:

    gradients → all-gather of all samples → statistics, rule, state, all on every worker
"""

import functools

import tensorflow as tf

from gsnr_tf.comm.base import assign
from gsnr_tf.sharding.row_exchange import ReplicatedRows, scatter
from gsnr_tf.sharding.shard import Shard

# Elements from which XLA saves more in updates than compiling takes: seconds, however
# small the model is.
_WORTH_COMPILING = 2**17


class Replicated:
    """Every bucket is a shard of every worker.

    Args:
        communicator: The `Communicator`.
        layout: The `BucketLayout`.
        variables: List of the model's trainable variables.
        slots: `ReplicatedSlots`.
        name: Prefix of the names of collectives.
        gathered: Whether workers get all samples, as they are; of ranks only.

    Attributes:
        shards: A `Shard` for each bucket.
        tables: List of `Tables`.
        slots: As given.
        compiled: Whether XLA compiles what is computed.
    """

    partitioned = False

    def __init__(self, communicator, layout, variables, slots, name, gathered=False):
        self.communicator = communicator
        self.slots = slots
        self.shards = [Shard.whole(bucket) for bucket in layout.buckets]
        received = communicator.workers if gathered else 1
        self.compiled = received * layout.size >= _WORTH_COMPILING
        self._layout = layout
        self._variables = variables
        self._name = name
        self._gathered = gathered and bool(self.shards)
        self.tables = layout.tables
        self._rows = [
            ReplicatedRows(communicator, tables, f"{name}.table{number}")
            for number, tables in enumerate(layout.tables)
        ]

    def variables_of(self, number):
        """The variables of a bucket, as tensors."""
        picked = self._layout.buckets[number].pick(self._variables)
        return [tf.convert_to_tensor(variable) for variable in picked]

    def statistics(self, kernels, moments, weighted, riders, samples):
        """See `Update.reduce`."""
        comm, buckets = self.communicator, len(self.shards)
        statistics = self._of_all_samples if self._gathered else self._of_sums
        found, riders = statistics(kernels, moments[:buckets], weighted, riders, samples)
        for one, rows, own in zip(kernels[buckets:], self._rows, moments[buckets:]):
            whole = rows.merged(own, weighted)
            found = [*found, comm.each(functools.partial(_statistics, one, samples), whole)]
        return found, riders

    def _of_sums(self, kernels, moments, weighted, riders, samples):
        comm = self.communicator
        means, variances, riders = comm.reduce_moments(
            moments, self._name, self._layout.carrier, weighted, riders=riders
        )

        def weigh(means, variances):
            return [
                one.weigh(mean, variance, samples)
                for one, mean, variance in zip(kernels, means, variances)
            ]

        return comm.each(weigh, means, variances), riders

    def _of_all_samples(self, kernels, moments, weighted, riders, samples):
        del weighted  # Weights always travel: a number each.
        sizes = [bucket.size for bucket in self._layout.buckets]
        own = [one.mean for one in moments]
        has_m2 = moments[0].m2 is not None
        if has_m2:
            own, sizes = [*own, *(one.m2 for one in moments)], 2 * sizes
        own, sizes = [*own, moments[0].weight[None]], [*sizes, 1]
        if riders is not None:
            own, sizes = [*own, riders], [*sizes, riders.shape[0]]
        name = f"{self._name}.samples"
        joined = self.communicator.all_gather_rows(tf.concat(own, axis=0)[None], name)
        joined = tf.ensure_shape(joined, [self.communicator.workers, sum(sizes)])
        parts = tf.split(joined, sizes, axis=1)
        if riders is not None:
            riders = tf.reduce_sum(parts.pop(), axis=0)
        weights = parts.pop()[:, 0]
        buckets = len(moments)
        m2s = parts[buckets:] if has_m2 else [None] * buckets
        found = [
            one.statistics(mean, m2, weights, samples) for one, mean, m2 in zip(kernels, parts, m2s)
        ]
        return found, riders

    def apply(self, kernels, statistics, scales, rate, t, active, samples):
        """Updates variables and slots of all buckets and tables on every worker."""
        comm, buckets = self.communicator, len(self.shards)
        for number, bucket in enumerate(self._layout.buckets):
            if all(has is False for has in bucket.pick(active)):
                continue
            known = bucket.activity(active)
            update = functools.partial(self._updated, kernels[number], number, rate, t, known)
            variables, slots = comm.each(update, statistics[number], scales[number])
            for variable, value in self._targets(bucket, variables, slots):
                comm.update(variable, assign, value)
        for number, tables in enumerate(self.tables, buckets):
            update = functools.partial(
                self._updated_rows, kernels[number], tables, rate, t, samples
            )
            variables, slots = comm.each(update, statistics[number], scales[number])
            for variable, (values, ids) in self._targets(tables, variables, slots):
                comm.update(variable, _scatter, values, ids)

    def _targets(self, part, variables, slots):
        """Pairs of a variable, or a slot, and what is given for it."""
        yield from zip(part.pick(self._variables), variables)
        for name, values in slots.items():
            yield from zip(part.pick(self.slots.by_name[name]), values)

    def _updated(self, kernels, number, rate, t, active, statistics, scales):
        variables = self.variables_of(number)
        slots = self.slots.of_bucket(self._layout.buckets[number])
        return kernels.update(variables, statistics, slots, scales, rate, t, active)

    def _updated_rows(self, kernels, tables, rate, t, samples, statistics, scales):
        """New values and ids of the touched rows, for each table and each of its slots."""
        keys = statistics.keys
        split = tables.split(keys)
        theta = tables.read(tables.pick(self._variables), split)
        slots = self.slots.read_rows(tables, split)
        u, slots, norms = kernels.toward(statistics, theta, slots, scales, rate, t, samples)
        if norms is not None:
            u, slots = kernels.descend(keys, theta, u, slots, norms, rate, t)

        def by_table(values):
            parts = [tables.of_table(n, values, split) for n in range(len(tables.indices))]
            return [(part.values, part.indices) for part in parts]

        names = list(self.slots.by_name)
        parts = tf.split(slots, len(names), axis=1) if names else []
        return by_table(u), {name: by_table(slot) for name, slot in zip(names, parts)}

    def sampled_sums(self, kernels, number, statistics, scales, rate, t, samples):
        """See `telemetry.sampled_sums`, of one part of the layout."""
        if number < len(self.shards):
            variables, slots = self.variables_of(number), self.slots.of_shard(number)
        else:
            tables = self.tables[number - len(self.shards)]
            split = tables.split(statistics.keys)
            variables = tables.read(tables.pick(self._variables), split)
            slots = self.slots.read_rows(tables, split)
        return kernels.sampled_sums(variables, statistics, slots, scales, rate, t, samples)

    def report(self, samples):
        """See `GSNROptimizer.sharding_report`."""
        dense = sum(bucket.size for bucket in self._layout.buckets) * self._layout.dtype.size
        rows = ", and rows of tables as they are touched" if self.tables else ""
        workers = self.communicator.workers
        moved = f"reduces {2 * dense:,} bytes an update"
        if self._gathered:
            moved = f"gathers {workers * dense:,} bytes an update"
        return (
            f"{workers} worker(s), k={samples} samples an update; each has all "
            f"{self._layout.size:,} elements and {self.slots.bytes:,} bytes of state; {moved}{rows}"
        )


def _statistics(kernels, samples, moments):
    return kernels.statistics(moments, samples)


def _scatter(variable, values, ids):
    scatter(variable, tf.IndexedSlices(values, ids))
