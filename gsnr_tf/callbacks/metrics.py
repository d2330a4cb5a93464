"""Metrics of all ranks as one."""

import numbers

import keras
import numpy as np
import tensorflow as tf

from gsnr_tf import comm

_ARRAYS = (numbers.Number, np.generic, np.ndarray, tf.Tensor, tf.Variable, keras.Variable)


class MetricAverageCallback(keras.callbacks.Callback):
    """Replaces each epoch's metrics by their mean over the ranks.

    Put it before callbacks that read them (early stopping, checkpoints, learning
    rate plateaus): these must decide alike on all ranks. A metric that only some
    ranks report, such as validation on rank 0, is the mean over those, on all ranks.

    Numbers become floats, arrays and tensors of any shape NumPy arrays; lists and dicts
    of these are averaged entry by entry. A NaN of any rank makes the mean NaN. What is no
    number, a string say, stays each rank's own.

    Raises:
        ValueError: At the end of an epoch, on all ranks: a metric has another shape on
            another rank.
    """

    def on_epoch_end(self, epoch, logs=None):
        if logs is None or comm.size() == 1:
            return
        mine = {name: tf.nest.map_structure(_numeric, logs[name]) for name in logs}
        mine = {name: value for name, value in mine.items() if _leaves(value)}
        communicator = comm.choose("auto", self.model.distribute_strategy)
        reports = communicator.gather(mine, "gsnr.metrics")
        for name in sorted(set().union(*reports)):
            by_rank = {r: own[name] for r, own in enumerate(reports) if name in own}
            mean = _mean(name, by_rank)
            if name in mine:
                logs[name] = tf.nest.map_structure(_choose, mean, logs[name])
            else:
                logs[name] = mean


def _leaves(value):
    return [leaf for leaf in tf.nest.flatten(value) if leaf is not None]


def _numeric(value):
    """The numbers of a leaf as an array, or `None`."""
    if not isinstance(value, _ARRAYS):
        return None
    array = np.asarray(value.numpy() if hasattr(value, "numpy") else value)
    # Strings, objects and dates.
    if array.dtype.kind in "SUOMm":
        return None
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _mean(name, by_rank):
    """The mean of a metric, a nest of arrays, over the ranks that report it."""
    first, *others = by_rank.values()
    try:
        for other in others:
            tf.nest.assert_same_structure(first, other)
        return tf.nest.map_structure(_mean_of_leaf, *by_rank.values())
    except (ValueError, TypeError):
        shapes = {rank: _shapes(value) for rank, value in by_rank.items()}
    raise ValueError(
        f"The metric '{name}' cannot be averaged over the ranks: its shapes differ. "
        f"Received, by rank: {shapes}. Make it report the same shape on all ranks."
    )


def _mean_of_leaf(*values):
    reported = [value for value in values if value is not None]
    if not reported:
        return None
    mean = np.mean(np.stack(reported), axis=0)
    return mean if mean.ndim else mean.item()


def _shapes(value):
    return tf.nest.map_structure(lambda a: None if a is None else a.shape, value)


def _choose(mean, own):
    return own if mean is None else mean
