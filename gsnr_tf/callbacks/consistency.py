"""Whether all ranks still hold the same weights and optimizer state."""

import logging
import zlib

import keras
import numpy as np
import tensorflow as tf

from gsnr_tf import comm
from gsnr_tf.callbacks import statistics
from gsnr_tf.callbacks.seeds import is_seed
from gsnr_tf.comm import RanksDiffer

_log = logging.getLogger("gsnr_tf")
_REACTIONS = ("stop", "broadcast")


class ConsistencyCheck(keras.callbacks.Callback):
    """Compares the state that all ranks should hold alike, and names what differs.

    Compared are, bit for bit, the weights, the optimizer's variables, counters and
    learning rate included, and, right after `AverageBatchStatistics`, the statistics
    that layers gather. Random seeds, slots of which each rank has a slice, and what is
    accumulated for the next update are each rank's own. It checks at the end of each
    epoch: each rank hashes its variables, and one number of each rank travels. Put it
    behind `AverageBatchStatistics` and before callbacks that save.

    Args:
        every: Int, training batches (with accumulation, micro-batches) from check to
            check within an epoch. Defaults to `None`, only at the end of epochs.
        on_difference: "stop" raises on all ranks. "broadcast" gives all ranks the state
            of the largest group of ranks that agree, of those the one with the lowest
            rank, and logs a warning. Defaults to "stop".

    Raises:
        RanksDiffer: On all ranks, with "stop"; or the ranks have models or optimizers of
            other variables.
        ValueError: An argument is none of these.
    """

    def __init__(self, every=None, on_difference="stop"):
        super().__init__()
        if every is not None and every < 1:
            raise ValueError(f"every must be at least 1, or None. Received: every={every}")
        check_reaction(on_difference)
        self.every = every
        self.on_difference = on_difference

    def on_epoch_begin(self, epoch, logs=None):
        self._batches = 0

    def on_train_batch_end(self, batch, logs=None):
        statistics.count_as_averaged(self.model, False)
        # More than one, with `steps_per_execution`.
        before, self._batches = self._batches, batch + 1
        if self.every and self._batches // self.every > before // self.every:
            self._check()

    def on_epoch_end(self, epoch, logs=None):
        self._check()

    def _check(self):
        if comm.size() > 1:
            communicator = comm.choose("auto", self.model.distribute_strategy)
            check_consistency(self.model, communicator, self.on_difference)


def check_reaction(on_difference):
    if on_difference not in _REACTIONS:
        raise ValueError(f"on_difference must be one of {_REACTIONS}. Received: {on_difference!r}")


def shared_state(model):
    """The variables of a compiled model that all ranks should hold alike.

    Between averages, what layers in training change without a gradient is each rank's.
    """
    own = {id(v) for v in statistics.changed_by_layers(model)}
    if statistics.are_averaged(model):
        own -= {id(v) for v in statistics.moving_statistics(model)}
    of_model = [
        variable
        for variable in model.variables
        if id(variable) not in own and not is_seed(variable)
    ]
    of_optimizer = [
        variable for variable in model.optimizer.variables if variable.synchronization != "on_read"
    ]
    return of_model + of_optimizer


def check_consistency(model, communicator, on_difference="stop"):
    """See `ConsistencyCheck`. All ranks must call it at one point, between steps."""
    if communicator.workers == 1:
        return
    state = shared_state(model)
    own = [_digest(variable) for variable in state]
    groups = _groups(communicator.gather(_checksum(repr(own).encode()), "gsnr.check"))
    if len(groups) == 1:
        return
    reports = communicator.gather(own, "gsnr.check.variables")
    if len({tuple(kind for kind, _ in report) for report in reports}) > 1:
        numbers = {rank: len(report) for rank, report in enumerate(reports)}
        raise RanksDiffer(
            "The ranks have other variables: of another number, order, shape or dtype. "
            f"Number of variables by rank: {numbers}. Make the same model and the same "
            "optimizer on all ranks."
        )
    told = _told([variable.path for variable in state], reports)
    if on_difference == "stop":
        raise RanksDiffer(
            f"The ranks have drifted apart. {told} Something changes this state on some "
            "ranks only: an assignment or a callback, an optimizer that does not reduce "
            "its gradients, or ranks of unlike processors. "
            'ConsistencyCheck(on_difference="broadcast") makes them alike and goes on.'
        )
    root = min(groups, key=lambda ranks: (-len(ranks), ranks[0]))[0]
    communicator.broadcast(state, root)
    if comm.rank() == 0:
        _log.warning("The ranks had drifted apart. %s All have rank %d's now.", told, root)


def _digest(variable):
    """Dtype and shape of a variable, and a checksum of its bytes."""
    value = tf.convert_to_tensor(variable)
    kind = f"{value.dtype.name}{value.shape}"
    if value.dtype == tf.string:
        return kind, _checksum(tf.io.serialize_tensor(value).numpy())
    # An array without a copy, but for bfloat16 scalars, which cannot.
    array = np.asarray(value if value.shape.rank else value.numpy())
    return kind, _checksum(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


# Of what Python and NumPy have, the fastest: 3.4 GB/s where SHA-1 does 1.4 and
# BLAKE2b 0.7. It is to find differences, not to withstand forgery.
_checksum = zlib.crc32


def _groups(values):
    """Lists of ranks that have the same value, by their first rank."""
    groups: dict = {}
    for rank, value in enumerate(values):
        groups.setdefault(value, []).append(rank)
    return list(groups.values())


def _told(paths, reports):
    """Which variables differ, and who has the same of the first ones."""
    apart = [
        f"{path} (rank " + " / rank ".join(", ".join(map(str, g)) for g in groups) + ")"
        for path, groups in zip(paths, map(_groups, zip(*reports)))
        if len(groups) > 1
    ]
    more = ", …" if len(apart) > 5 else ""
    return f"{len(apart)} of {len(paths)} variables differ: {', '.join(apart[:5])}{more}."
