"""The replicas of a `tf.distribute.Strategy`."""

import tensorflow as tf

from gsnr_tf.comm.base import Communicator, native


class StrategyCommunicator(Communicator):
    """The replicas of a strategy, one worker each.

    A strategy whose collectives need all replicas of the process at one point
    (MirroredStrategy, MultiWorkerMirroredStrategy) forbids them inside a
    conditional of a replica. So the whole step moves to the cross-replica context,
    where conditionals and collectives mix freely, and what belongs to a replica
    goes back to it by `each`. Other strategies (TPU) stay in the replica.

    Args:
        strategy: The `tf.distribute.Strategy` in whose scope the model was made.
    """

    def __init__(self, strategy):
        self._strategy = strategy
        self.workers = strategy.num_replicas_in_sync
        # Under a strategy the loss is divided by the number of replicas, by Keras
        # in `fit` and by convention in loops of one's own, so that gradients add up.
        self.gradient_scale = float(self.workers)

    def run(self, step, *values):
        if tf.distribute.in_cross_replica_context():
            raise RuntimeError(
                "Gradients were applied outside of a replica. Received a call in the "
                "cross-replica context of "
                f"{type(self._strategy).__name__}; call `apply_gradients` inside a "
                "function that `strategy.run` runs."
            )
        return tf.__internal__.distribute.interim.maybe_merge_call(
            lambda _, *merged: step(*merged), self._strategy, *values
        )

    def each(self, fn, *values):
        if tf.distribute.in_cross_replica_context():
            return self._strategy.extended.call_for_each_replica(fn, args=values)
        return fn(*values)

    def all_reduce(self, tensor, name):
        add = tf.distribute.ReduceOp.SUM
        if tf.distribute.in_cross_replica_context():
            return self._strategy.extended.reduce_to(add, tensor, destinations=tensor)
        return tf.distribute.get_replica_context().all_reduce(add, tensor)

    def all_gather_rows(self, rows, name):
        if self.workers == 1:
            return rows
        if tf.distribute.in_cross_replica_context():
            here = self._strategy.experimental_local_results(rows)
            if len(here) == self.workers:
                # By no collective, whose keys are those of another strategy's in a process
                # that has had one for the same devices.
                return tf.concat(here, axis=0)
            return self._strategy.gather(rows, axis=0)
        return tf.distribute.get_replica_context().all_gather(rows, axis=0)

    def update(self, variable, fn, *values):
        self._strategy.extended.update(native(variable), fn, args=values, group=False)

    def agreed(self, value):
        if tf.distribute.in_cross_replica_context():
            return self._strategy.experimental_local_results(value)[0]
        return value

    def place(self):
        return tf.distribute.get_replica_context().replica_id_in_sync_group
