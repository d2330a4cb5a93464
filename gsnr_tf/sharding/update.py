"""An update, from samples of the gradient to new weights, in one place.

    samples → statistics → sums of each variable → clip, multiplier, rule → weights

Where the samples of which elements come together, and how the weights get back, is the
exchange's: `replicated.py` and `sharded.py`. What is computed is in `kernels.py`, alike
for both: a replicated update is one whose shards are whole buckets.
"""

import functools

import tensorflow as tf

from gsnr_tf.sharding import telemetry
from gsnr_tf.sharding.kernels import UpdateKernels, clip_scales
from gsnr_tf.sharding.row_kernels import RowKernels


class Update:
    """Reduction and update of all variables, for one optimizer.

    Args:
        rule: The `Rule`.
        settings: `Settings`.
        by_variable: List of `VariableSettings`.
        exchange: `Replicated` or `Sharded`.
        samples: Callable that returns k, an int or a scalar tensor.

    Attributes:
        exchange: As given.
        telemetry: `Telemetry`, or `None`.
    """

    def __init__(self, rule, settings, by_variable, exchange, samples):
        self._settings = settings
        self._samples = samples
        self._comm = exchange.communicator
        self.exchange = exchange
        self.telemetry = None
        shared = {}
        self._kernels = []
        for shard in exchange.shards:
            kernels = UpdateKernels(rule, settings, by_variable, shard, exchange.compiled)
            self._kernels.append(shared.setdefault(kernels.kind, kernels))
        self._kernels += [
            RowKernels(rule, settings, by_variable, tables, exchange.compiled)
            for tables in exchange.tables
        ]

    # ---- within a step ---------------------------------------------------------------

    def reduce(self, moments, weighted, riders):
        """Statistics of the samples of all workers.

        Args:
            moments: List of `Moments` of this worker, one for each bucket, and of
                `SparseMoments`, one for each of the layout's tables.
            weighted: Whether their weight may differ between workers.
            riders: Tensor `[m]` to sum over ranks on the way, or `None`.

        Returns:
            `(finite, statistics, riders)`: whether the mean of all samples is finite, a
            scalar boolean; the `Statistics` of each shard, and `RowStatistics`, with sums
            over all shards;
            the sum of the riders.
        """
        if self.telemetry:
            self.telemetry.mark(0, moments)
        statistics, riders = self.exchange.statistics(
            self._kernels, moments, weighted, riders, self._samples()
        )
        finite = self._comm.each(_all_finite, [found.sums for found in statistics])
        return self._comm.agreed(finite), statistics, riders

    def apply(self, active, statistics, rate, t):
        """Updates all variables.

        Args:
            active: For each variable whether it has a gradient: a boolean, or a tensor
                where only other ranks know.
            statistics: What `reduce` gave.
            rate, t: Scalar tensors: learning rate, and number of this update from 1.

        Returns:
            Σ mean² and Σ variance over all elements, scalars.
        """
        all_sums = [found.sums for found in statistics]
        scales = self._comm.each(self._clip_scales, all_sums)
        if self.telemetry:
            self.telemetry.mark(1, all_sums)
            self._observe(statistics, scales, rate, t)
        self.exchange.apply(self._kernels, statistics, scales, rate, t, active, self._samples())
        return self._comm.each(_totals, all_sums)

    def end(self):
        """To be called in a step after all else."""
        self.exchange.slots.end_update()
        if self.telemetry:
            self.telemetry.mark(2, [])

    def _clip_scales(self, all_sums):
        return clip_scales(self._settings, [sums[:, 2] for sums in all_sums])

    # ---- telemetry -------------------------------------------------------------------

    def _observe(self, statistics, scales, rate, t):
        observe = functools.partial(self._sampled_sums, rate, t)

        def sampled():
            return self._comm.each(observe, statistics, scales)

        if self.exchange.partitioned:
            # Sampled here, and sent later: the state before the step can be freed without
            # waiting for the other ranks.
            own = self.telemetry.when_due(sampled)

            def sampled():
                return self.exchange.total(own, "telemetry")[0]

        tables = functools.partial(self._tables, rate, t)
        self.telemetry.record(
            lambda: self._comm.each(tables, [s.sums for s in statistics], sampled())
        )

    def _sampled_sums(self, rate, t, statistics, scales):
        return [
            self.exchange.sampled_sums(
                kernels, number, statistics[number], scales[number], rate, t, self._samples()
            )
            for number, kernels in enumerate(self._kernels)
        ]

    def _tables(self, rate, t, all_sums, all_sampled):
        return [
            telemetry.table(sums, sampled, kernels.math.phi(sampled[:, 4:6], rate, t))
            for kernels, sums, sampled in zip(self._kernels, all_sums, all_sampled)
        ]


def _all_finite(all_sums):
    # A norm that overflows counts as not finite: nothing could be clipped by it.
    return tf.math.is_finite(sum(tf.reduce_sum(sums[:, 2]) for sums in all_sums))


def _totals(all_sums):
    return tf.unstack(sum(tf.reduce_sum(sums[:, 2:], axis=0) for sums in all_sums))
