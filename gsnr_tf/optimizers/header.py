"""What every rank tells all others with every update, and what follows from it.

It rides on the sums over ranks that an update needs anyway: a row of numbers for each
rank, which only that rank fills, and for each variable who has a gradient and whether the
weights are alike. A step is traced by each rank for itself, so nothing that a rank knows
while it traces can be taken for all.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from gsnr_tf.comm import native
from gsnr_tf.optimizers.exclusions import path_of
from gsnr_tf.sharding.fingerprint import all_alike, fingerprints

# Counters are told modulo this, to be exact in float32.
_COUNTER = 2**20
# Of a variable with so many rows only some are looked at.
_MANY_ROWS, _GLIMPSED = 1024, 8
_DIFFERENCES = (
    ("learning rates", "Set the rate on all ranks alike, or by one callback that all have"),
    ("counts of updates", "Load a checkpoint on all ranks, or on one before `fit` begins"),
    (
        "optimizer states, since only some of them have loaded or assigned one (counted)",
        "Do so on all ranks, or on one before `fit` begins, with BroadcastGlobalVariablesCallback",
    ),
)


class Told(NamedTuple):
    """What all ranks have told.

    Attributes:
        table: `[ranks, 4]`: learning rate, calls, changes of state, wish to stop.
        having: `[variables]`, how many ranks have a gradient.
        prints, squares: `[variables]`, sums of fingerprints and of their squares.
    """

    table: tf.Tensor
    having: tf.Tensor
    prints: tf.Tensor
    squares: tf.Tensor


class UpdateHeader:
    """Composes and checks what ranks tell.

    Args:
        communicator: The `Communicator` of ranks.
        variables: The optimizer's trainable variables.
        dtype: Of statistics.
    """

    def __init__(self, communicator, variables, dtype):
        self._comm = communicator
        self._variables = variables
        self._dtype = dtype
        with tf.init_scope():
            self._wish = tf.Variable(0.0, dtype=dtype, trainable=False)
            self._wishes = tf.Variable(tf.zeros([communicator.workers], dtype), trainable=False)

    # ---- in Python, between steps ---------------------------------------------------

    def wish_to_stop(self):
        """Tells all ranks with the next update that this one wants to stop."""
        self._wish.assign(1.0)

    def who_wants_to_stop(self):
        """List of ranks that wanted to stop at the last update."""
        return [rank for rank, wish in enumerate(self._wishes.numpy()) if wish]

    def ask_who_wants_to_stop(self):
        """Learns it now. All ranks must call it at one point."""
        wishes = self._comm.gather(float(self._wish.numpy()), "gsnr.stop")
        self._wishes.assign(tf.constant(wishes, self._dtype))

    def forget_wishes(self):
        self._wish.assign(0.0)
        self._wishes.assign(tf.zeros_like(self._wishes))

    # ---- within a step ---------------------------------------------------------------

    def riders(self, has_gradient, rate, calls, changes):
        """What this rank tells, a vector `[m]` to be summed over ranks.

        Args:
            has_gradient: List of booleans, one for each variable.
            rate: Scalar, the learning rate.
            calls, changes: Scalar int64: calls so far, and changes of the state.
        """
        counters = [tf.cast(n % _COUNTER, self._dtype) for n in (calls, changes)]
        row = tf.stack([tf.cast(rate, self._dtype), *counters, self._wish])
        before = self._comm.rank
        after = self._comm.workers - 1 - before
        prints = tf.cast(self._prints(), self._dtype)
        having = tf.constant(has_gradient, self._dtype)
        table = tf.pad(row[None], [[before, after], [0, 0]])
        return tf.concat([tf.reshape(table, [-1]), having, prints, prints * prints], 0)

    def _prints(self):
        return fingerprints([_glimpse(native(v)) for v in self._variables])

    def read(self, riders):
        """`Told`, of the sum of all ranks' riders."""
        variables = len(self._variables)
        table, *rest = tf.split(riders, [4 * self._comm.workers, *[variables] * 3])
        told = Told(tf.reshape(table, [-1, 4]), *rest)
        self._wishes.assign(told.table[:, 3])
        return told

    def check(self, told):
        """Operations that fail, on all ranks, where ranks differ in what must be alike."""
        alike = [_all_equal(told.table[:, column]) for column in range(3)]
        same = all_alike(told.prints, told.squares, self._comm.workers)
        fine = tf.reduce_all(tf.stack([*alike, tf.reduce_all(same)]))
        return tf.cond(fine, lambda: True, lambda: self._fail(told.table, alike, same))

    def _fail(self, table, alike, same):
        prints = tf.cast(self._prints(), self._dtype)[None]
        before, workers = self._comm.rank, self._comm.workers
        prints = tf.pad(prints, [[before, workers - 1 - before], [0, 0]])
        prints = self._comm.all_reduce(prints, "gsnr.fingerprints")
        checks = []
        for column, (what, hint) in enumerate(_DIFFERENCES):
            rank, there, here = _first_other(table[:, column])
            there, here = (tf.strings.as_string(n, shortest=True) for n in (there, here))
            message = tf.strings.join(
                [
                    f"The ranks have different {what}: rank ",
                    tf.as_string(rank),
                    " has ",
                    there,
                    ", rank 0 has ",
                    here,
                    f". {hint}.",
                ]
            )
            checks.append(tf.debugging.Assert(alike[column], [message]))
        paths = tf.constant([path_of(v) for v in self._variables])
        index = tf.argmin(tf.cast(same, tf.int32))
        rank, *_ = _first_other(prints[:, index])
        message = tf.strings.join(
            [
                "The ranks have different weights: ",
                paths[index],
                " on rank ",
                tf.as_string(rank),
                " is not that of rank 0. Assign and load weights on all ",
                "ranks alike, or on rank 0 before `fit` begins, with ",
                "BroadcastGlobalVariablesCallback.",
            ]
        )
        checks.append(tf.debugging.Assert(tf.reduce_all(same), [message]))
        with tf.control_dependencies([check for check in checks if check is not None]):
            return tf.constant(False)


def _glimpse(variable):
    """The variable, or of one with many rows a few, evenly spread: TensorFlow copies a table
    of which rows were updated whenever all of it is read."""
    rows = variable.shape[0] if variable.shape.rank else 0
    if rows < _MANY_ROWS:
        return tf.convert_to_tensor(variable)
    return tf.gather(variable, np.linspace(0, rows - 1, _GLIMPSED).astype("int64"))


def _all_equal(values):
    # NaN is not NaN, but all may have it.
    return tf.reduce_all((values == values[0]) | (values != values) & (values[0] != values[0]))


def _first_other(values):
    """The first rank whose value is not that of rank 0, its value, and rank 0's."""
    rank = tf.argmax(tf.cast(tf.not_equal(values, values[0]), tf.int32))
    return rank, values[rank], values[0]
