"""Updates that are skipped because the gradient is not finite, and an end to them.

A job whose every gradient is NaN trains no more. It would go on to its last epoch, and
end as if all were well.
"""

import tensorflow as tf
from tensorflow.python.ops import control_flow_util

from gsnr_tf.optimizers.exclusions import path_of
from gsnr_tf.optimizers.state import Unsaved


class Skips:
    """Counts skipped updates in a row, and stops training where there are too many.

    Args:
        strategy: The `tf.distribute.Strategy` of the optimizer.
    """

    def __init__(self, strategy):
        self._in_a_row = Unsaved(0, tf.int64, strategy)

    @property
    def in_a_row(self):
        """Scalar int64 variable."""
        return self._in_a_row.value

    def none(self, communicator):
        """Notes, within a step, that an update was made."""
        communicator.update(self.in_a_row, lambda v: v.assign(tf.zeros_like(v)))

    def one_more(self, optimizer, moments):
        """Notes, within a step, that one was skipped.

        Args:
            optimizer: The optimizer.
            moments: List of this worker's `Moments`, one for each bucket.
        """
        communicator, limit = optimizer._comm, optimizer.max_consecutive_skips
        # Read where it is one value; assigned on every replica.
        skipped = tf.convert_to_tensor(self.in_a_row) + 1
        skipped = tf.where(optimizer._skip_is_expected(), tf.zeros_like(skipped), skipped)
        communicator.update(self.in_a_row, lambda v, n: v.assign(n), skipped)
        graph = tf.compat.v1.get_default_graph()
        # XLA can neither fail nor form a message; see `check`.
        if limit is None or control_flow_util.GraphOrParentsInXlaContext(graph):
            return

        def stop():
            _fail(optimizer, moments, skipped)
            return True

        tf.cond(skipped >= limit, stop, lambda: False)

    def check(self, limit):
        """Raises, between steps, where one that XLA compiled could not.

        Args:
            limit: Int or `None`, as `max_consecutive_skips`.
        """
        skipped = int(self.in_a_row.numpy())
        if limit is not None and skipped >= limit:
            raise tf.errors.InvalidArgumentError(
                None,
                None,
                f"{skipped} updates in a row were skipped: the gradient is not finite. "
                "Compile the model with jit_compile=False to be told of which variable.",
            )


def _fail(optimizer, moments, skipped):
    """Fails, on all workers, with the name of the first variable that is not finite."""
    communicator = optimizer._comm
    bad = communicator.each(lambda m: _by_variable(optimizer, m), moments)
    by_worker = communicator.by_worker(bad, f"{optimizer._collective}.finite")
    worker, index = _first(by_worker)
    paths = tf.constant([path_of(v) for v in optimizer._trainable_variables])
    found = tf.strings.join(
        ["the gradient of ", paths[index], " is not finite on rank ", tf.as_string(worker)]
    )
    nowhere = tf.constant(
        "the squared norm of the gradient overflows, though each element is finite"
    )
    what = tf.where(tf.reduce_any(by_worker > 0), found, nowhere)
    steps = tf.cast(optimizer.accumulation_steps, tf.int64)
    before = tf.cast(optimizer._iterations, tf.int64) // steps
    update = before + tf.convert_to_tensor(optimizer._skipped) + 1
    message = tf.strings.join(
        [
            tf.as_string(skipped),
            " updates in a row were skipped: ",
            what,
            ". This was update ",
            tf.as_string(update),
            ", after ",
            tf.as_string(update * steps),
            " batches. Look at the data of these batches, lower the learning rate, or clip "
            "gradients; `optimizer.max_consecutive_skips` sets how many may be skipped.",
        ]
    )
    tf.debugging.Assert(False, [message])


def _by_variable(optimizer, moments):
    """1 for each variable that is not finite on this worker, else 0: `[variables]`."""
    layout = optimizer._layout
    by_part = [
        _finite_by_variable(part, of_part.mean, getattr(of_part, "keys", None))
        for part, of_part in zip(layout.parts, moments)
    ]
    bad = [by_part[number][position] for number, position in layout.index_map]
    return tf.cast(tf.stack(bad), optimizer._layout.dtype)


def _finite_by_variable(part, mean, keys):
    """Of each variable of a part of the layout whether it is not finite."""
    if keys is None:
        finite = [tf.reduce_all(tf.math.is_finite(own)) for own in part.unpack(mean)]
    else:
        split = part.split(keys)
        rows = [part.of_table(place, mean, split).values for place in range(len(split))]
        finite = [tf.reduce_all(tf.math.is_finite(own)) for own in rows]
    return [tf.logical_not(one) for one in finite]


def _first(table):
    """Row and column of the first entry that is not 0, along columns first."""
    columns = tf.reduce_any(table > 0, axis=0)
    column = tf.argmax(tf.cast(columns, tf.int32))
    return tf.argmax(tf.cast(table[:, column] > 0, tf.int32)), column
