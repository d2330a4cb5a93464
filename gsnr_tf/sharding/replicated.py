"""The exchange in which every worker has all parameters and updates them all.

    gradients → allreduce of means, then of deviations about them → statistics, rule,
    state, all on every worker

What replicas and a single process use, and ranks with `sharding="none"`.
"""

import functools

import tensorflow as tf

from gsnr_tf.comm.base import assign
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

    Attributes:
        shards: A `Shard` for each bucket.
        slots: As given.
        compiled: Whether XLA compiles what is computed.
    """

    partitioned = False

    def __init__(self, communicator, layout, variables, slots, name):
        self.communicator = communicator
        self.slots = slots
        self.shards = [Shard.whole(bucket) for bucket in layout.buckets]
        self.compiled = layout.size >= _WORTH_COMPILING
        self._layout = layout
        self._variables = variables
        self._name = name

    def variables_of(self, number):
        """The variables of a bucket, as tensors."""
        picked = self._layout.buckets[number].pick(self._variables)
        return [tf.convert_to_tensor(variable) for variable in picked]

    def statistics(self, kernels, moments, weighted, riders, samples):
        """See `Update.reduce`."""
        means, variances, riders = self.communicator.reduce_moments(
            moments, self._name, self._layout.carrier, weighted, riders=riders
        )

        def weigh(means, variances):
            return [
                one.weigh(mean, variance, samples)
                for one, mean, variance in zip(kernels, means, variances)
            ]

        return self.communicator.each(weigh, means, variances), riders

    def apply(self, kernels, statistics, scales, rate, t, active):
        """Updates variables and slots of all buckets on every worker."""
        for number, bucket in enumerate(self._layout.buckets):
            if all(has is False for has in bucket.pick(active)):
                continue
            known = bucket.activity(active)
            update = functools.partial(self._updated, kernels[number], number, rate, t, known)
            variables, slots = self.communicator.each(update, statistics[number], scales[number])
            for variable, value in zip(bucket.pick(self._variables), variables):
                self.communicator.update(variable, assign, value)
            for name, values in slots.items():
                for slot, value in zip(bucket.pick(self.slots.by_name[name]), values):
                    self.communicator.update(slot, assign, value)

    def _updated(self, kernels, number, rate, t, active, statistics, scales):
        variables = self.variables_of(number)
        slots = self.slots.of_bucket(self._layout.buckets[number])
        return kernels.update(variables, statistics, slots, scales, rate, t, active)

    def report(self, samples):
        """See `GSNROptimizer.sharding_report`."""
        number = self._layout.size
        return (
            f"{self.communicator.workers} worker(s), k={samples} samples an update; each "
            f"has all {number:,} elements and {self.slots.bytes:,} bytes of state; "
            f"reduces {2 * number * self._layout.dtype.size:,} bytes an update"
        )
