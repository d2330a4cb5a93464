"""The exchange at the price of a plain allreduce.

    gradients → all-to-all → all samples of the own shard → statistics, rule, state
    on the shard → all-gather of the weights

An allreduce moves 2·N·(k−1)/k numbers: it adds up shards, then sends the sums round.
Here the first half sends the samples themselves, so that the owner rank of a shard takes
their exact variance without a second reduction, and the second half sends weights.
Each rank computes the rule, and keeps its state, for 1/k of the parameters.

Of embedding tables the rows that were touched go this way, see `row_exchange.py`.

Each bucket is divided among all ranks and goes this way by itself, as soon as its
gradients are there. What concerns a whole variable crosses shards as one number: sums
for the mean of r and for clipping in one short allreduce, norms for trust ratios in
another.
"""

import tensorflow as tf

from gsnr_tf.sharding.kernels import merge_workers
from gsnr_tf.sharding.row_exchange import ShardedRows
from gsnr_tf.sharding.shard import Shard
from gsnr_tf.sharding.slots import ShardedSlots


class Sharded:
    """Every bucket, and the rows of tables, are divided among all ranks. All ranks must
    make it at one point.

    Args:
        communicator: A `Communicator` that can shard.
        layout: The `BucketLayout`.
        variables: List of the model's trainable variables.
        slots: Names of the rule's slots.
        plan: The `SamplingPlan`.
        wire_dtype: Name of the dtype in which gradients travel.
        name: Prefix of the names of collectives.

    Attributes:
        shards: This rank's `Shard` of each bucket.
        tables: List of `Tables`.
        slots: `ShardedSlots`.
        compiled: Whether XLA compiles what is computed: always, for the copies that it
            spares.
    """

    partitioned = True
    compiled = True

    def __init__(self, communicator, layout, variables, slots, plan, wire_dtype, name):
        self.communicator = communicator
        self._layout = layout
        self._name = name
        self._plan = plan
        self.shards = [
            Shard(bucket, *communicator.own_range(bucket.blocks)) for bucket in layout.buckets
        ]
        self.slots = ShardedSlots(slots, layout, self.shards, communicator)
        self._buckets = [
            _ShardedBucket(
                communicator, shard, variables, wire_dtype, f"{name}.{number}",
                carries=number == layout.carrier,
            )
            for number, shard in enumerate(self.shards)
        ]  # fmt: skip
        self.tables = layout.tables
        self._rows = [
            ShardedRows(communicator, tables, variables, wire_dtype, f"{name}.table{number}")
            for number, tables in enumerate(layout.tables)
        ]

    def variables_of(self, number):
        """The variables of a bucket, whole, as tensors."""
        return self._buckets[number].variables()

    def statistics(self, kernels, moments, weighted, riders, samples):
        """See `Update.reduce`. Weights of samples always travel."""
        carrier, buckets = self._layout.carrier, len(self._buckets)
        found, weights = [None] * len(moments), None
        order = [] if carrier is None else [carrier, *(n for n in range(buckets) if n != carrier)]
        for number in order:
            means, m2s, theirs, weights = self._buckets[number].scatter(
                moments[number], weights, self._plan.compares_workers
            )
            found[number] = kernels[number].statistics(means, m2s, theirs, samples)
        if self._rows and weights is None:
            weights = self._weights(moments[0].weight)
        for number, rows in enumerate(self._rows, buckets):
            whole = rows.scatter(moments[number], weights, self._plan.compares_workers)
            found[number] = kernels[number].statistics(whole, samples)
        sums, riders = self.total([one.sums for one in found], "sums", riders)
        return [one._replace(sums=s) for one, s in zip(found, sums)], riders

    def _weights(self, weight):
        """For each stage those of its ranks, where there is no bucket to carry them."""
        by_rank = self.communicator.by_worker(weight[None], f"{self._name}.weights")[:, 0]
        return [
            tf.stack([tf.reduce_sum(tf.gather(by_rank, ranks)) for ranks in behind])
            for behind in self.communicator.exchange_plan.behind
        ]

    def apply(self, kernels, statistics, scales, rate, t, active, samples):
        """Updates the own shards of variables and slots, and gathers all variables."""
        begun = []
        for number, one in enumerate(kernels):
            given = one, number, statistics[number], scales[number], rate, t
            if number < len(self._buckets):
                begun.append(self._begin(*given, active))
            else:
                begun.append(self._begin_rows(*given, samples))
        adapting = [(norms, finish) for norms, finish in begun if norms is not None]
        if adapting:
            all_norms, _ = self.total([norms for norms, _ in adapting], "norms")
            for (_, finish), norms in zip(adapting, all_norms):
                finish(norms)
        for norms, finish in begun:
            if norms is None:
                finish(None)

    def _begin(self, kernels, number, statistics, scales, rate, t, active):
        """The update of a bucket up to where norms have to be summed over shards.

        Returns:
            `(norms, finish)`: `[variables, 2]`, or `None` without a trust ratio, and a
            function that is given their sum over shards, and does the rest.
        """
        bucket, slots = self._buckets[number], self.slots.of_shard(number)
        known = self._layout.buckets[number].activity(active)
        u, norms = kernels.direction(bucket.variables(), statistics, slots, scales, rate, t, known)

        def finish(norms):
            theta = u
            if norms is not None:
                theta = kernels.descend(bucket.variables(), u, norms, slots, rate, t, known)
            bucket.gather(theta)

        return norms, finish

    def _begin_rows(self, kernels, number, statistics, scales, rate, t, samples):
        """The same of tables."""
        place = number - len(self._buckets)
        rows, keys = self._rows[place], statistics.keys
        theta = rows.read(self.tables[place].split(keys))
        before = self.slots.read_rows(place, keys)
        u, moved, norms = kernels.toward(statistics, theta, before, scales, rate, t, samples)

        def finish(norms):
            new, after = u, moved
            if norms is not None:
                new, after = kernels.descend(keys, theta, u, moved, norms, rate, t)
            self.slots.write_rows(place, keys, after)
            rows.gather(keys, new)

        return norms, finish

    def sampled_sums(self, kernels, number, statistics, scales, rate, t, samples):
        """See `telemetry.sampled_sums`, of this rank's shard of one part of the layout."""
        if number < len(self._buckets):
            variables, slots = self.variables_of(number), self.slots.of_shard(number)
        else:
            place, keys = number - len(self._buckets), statistics.keys
            variables = self._rows[place].read(self.tables[place].split(keys))
            slots = self.slots.read_rows(place, keys)
        return kernels.sampled_sums(variables, statistics, slots, scales, rate, t, samples)

    def total(self, tables, name, riders=None):
        """Sums over all ranks of tables `[variables, columns]`, by one collective.

        Returns the list of them, and the sum of riders `[m]`.
        """
        parts = [tf.reshape(table, [-1]) for table in tables]
        sizes = [part.shape[0] for part in parts]
        if riders is not None:
            parts, sizes = [*parts, riders], [*sizes, riders.shape[0]]
        total = self.communicator.all_reduce(tf.concat(parts, axis=0), f"{self._name}.{name}")
        totals = tf.split(total, sizes)
        riders = None if riders is None else totals.pop()
        return [tf.reshape(t, table.shape) for t, table in zip(totals, tables)], riders

    def report(self, samples):
        """See `GSNROptimizer.sharding_report`."""
        exchange = self.communicator.exchange_plan
        by_host = f" by way of {exchange.hosts} hosts" if exchange.hosts > 1 else ""
        lines = [
            f"{self.communicator.workers} ranks{by_host}, {len(self._buckets)} buckets, "
            f"k={samples} samples an update"
        ]
        m2_travels = [self._plan.keeps_m2, self._plan.compares_workers]
        for index, rank in sorted(enumerate(exchange.owner_ranks), key=lambda x: x[1]):
            own = sum(bucket.owned(index) for bucket in self._buckets)
            rows = [(t.owned(index, self.communicator.workers), t.width) for t in self.tables]
            own += sum(number * width for number, width in rows)
            state = own * len(self.slots.names) * self._layout.dtype.size
            sent = sum(bucket.sent(index, m2_travels) for bucket in self._buckets)
            lines.append(
                f"rank {rank}: owns {own:,} elements, {state:,} bytes of state, "
                f"sends {sent:,} bytes an update"
            )
            if rows:
                tables = sum(number for number, _ in rows)
                lines[-1] += f" and rows as they are touched; owns {tables:,} rows of tables"
        return "\n".join(lines)


class _ShardedBucket:
    """What is sent of one bucket, and what comes back.

    Args:
        communicator, variables, wire_dtype, name: As for `Sharded`.
        shard: This rank's `Shard`.
        carries: Whether the weights of samples travel with this bucket.
    """

    def __init__(self, communicator, shard, variables, wire_dtype, name, carries):
        self._comm = communicator
        self._carries = carries
        self._name = name
        self._bucket = bucket = shard.bucket
        self._bounds = [bucket.at(b) for b in communicator.bounds(bucket.blocks)]
        exchange = communicator.exchange_plan
        self._cuts = exchange.cuts(self._bounds, exchange.shard)
        self._wire_dtype = bucket.dtype if wire_dtype == "float32" else tf.as_dtype(wire_dtype)
        self._variables = bucket.pick(variables)

    def variables(self):
        return [tf.convert_to_tensor(variable) for variable in self._variables]

    def owned(self, index):
        """Elements of shard `index`."""
        return self._bounds[index + 1] - self._bounds[index]

    def sent(self, index, m2_travels):
        """Bytes from its owner rank: samples of the others' shards, its weights to all.

        Args:
            index: Of the shard.
            m2_travels: For each stage of the exchange whether m2 travels as well.
        """
        bucket, own, sent = self._bucket, self.owned(index), 0
        cuts = self._comm.exchange_plan.cuts(self._bounds, index)
        held = [whole[-1] - whole[0] for whole in cuts]
        for before, after, m2 in zip(held, [*held[1:], own], m2_travels):
            item = self._wire_dtype.size + (bucket.dtype.size if m2 else 0)
            sent += (before - after) * item
        return sent + (len(self._bounds) - 2) * own * bucket.weights_dtype.size

    def scatter(self, moments, weights, compares_workers):
        """Sends the samples to their owner ranks.

        Args:
            moments: `Moments` of this rank.
            weights: For each stage those of its ranks; `None` for the bucket with which
                they travel.
            compares_workers: Whether the workers of a host are samples of their own.

        Returns:
            `(means, m2s, weights of the last stage, weights)`: what has come for the own
            shard, as `UpdateKernels.statistics` takes it, and weights for other buckets.
        """
        mean, m2 = tf.cast(moments.mean, self._wire_dtype), moments.m2
        weight, found = moments.weight, []
        stages = self._comm.exchange_plan.stages
        for number, (stage, cuts) in enumerate(zip(stages, self._cuts)):
            name = f"{self._name}.{number}"
            if self._carries:
                means, theirs = self._comm.scatter_samples(
                    mean, cuts, stage, f"{name}.mean", weight
                )
                weight = tf.reduce_sum(theirs)
            else:
                means = self._comm.scatter_samples(mean, cuts, stage, f"{name}.mean")
                theirs = weights[number]
            found.append(theirs)
            if m2 is not None:
                # Squares of small gradients are too small for float16.
                m2 = self._comm.scatter_samples(m2, cuts, stage, f"{name}.m2")
            if stage is not stages[-1]:
                mean, m2 = merge_workers(means, m2, theirs, self._bucket.dtype, compares_workers)
        return means, m2, theirs, found

    def gather(self, theta):
        """Joins the shards of all ranks and gives the variables their new weights."""
        whole = self._comm.all_gather_shards(theta, self._bounds, f"{self._name}.weights")
        for variable, value in zip(self._variables, self._bucket.unpack(whole)):
            variable.assign(tf.cast(value, variable.dtype))
