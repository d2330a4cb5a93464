"""Statistics that layers gather while they train, BatchNorm's say, over all ranks."""

import weakref

import keras
import tensorflow as tf

from gsnr_tf import comm

# Models that have not been trained since their statistics were averaged.
_averaged: weakref.WeakSet = weakref.WeakSet()


class AverageBatchStatistics(keras.callbacks.Callback):
    """Averages moving statistics over the ranks, once for each epoch.

    Under Horovod each rank normalizes by its own batches, so that the moving mean and
    variance of BatchNorm, which evaluation and saved models use, are of its share of
    the data alone. Put this callback before those that save.

    It averages after the last training batch of an epoch: before a rank evaluates,
    and at the epoch's end where it does not, so that it does not matter which ranks
    evaluate. All floating variables of layers in training that no gradient changes
    become their mean. The moving variance of a `keras.layers.BatchNormalization`
    becomes the mean of the variances plus the variance of the means: that of all ranks'
    examples together. How far means are apart is seen in the moving means, which begin
    each epoch alike: an epoch that is short beside 1/(1 - momentum) steps shows less
    of it than there is.

    Raises:
        FloatingPointError: On all ranks: a rank has a statistic that is not finite.
            None has been changed.
    """

    def on_train_begin(self, logs=None):
        self._trained = False

    def on_train_batch_end(self, batch, logs=None):
        self._trained = True
        count_as_averaged(self.model, False)

    def on_test_begin(self, logs=None):
        self._average()

    def on_epoch_end(self, epoch, logs=None):
        self._average()

    def _average(self):
        if self._trained and comm.size() > 1:
            communicator = comm.choose("auto", self.model.distribute_strategy)
            average_statistics(self.model, communicator)
        self._trained = False


def changed_by_layers(model):
    """Variables that the forward pass may change, of layers that are trained."""
    return [
        variable
        for layer in model._flatten_layers()
        if layer.trainable
        for variable in layer._non_trainable_variables
    ]


def moving_statistics(model):
    """Those of `changed_by_layers` that can be averaged: floating ones."""
    variables = changed_by_layers(model)
    return [v for v in variables if tf.as_dtype(v.dtype).is_floating]


def are_averaged(model):
    """Whether moving statistics are the same on all ranks, by what was told."""
    return model in _averaged


def count_as_averaged(model, averaged):
    """Tells that the statistics have been averaged, or that training goes on."""
    (_averaged.add if averaged else _averaged.discard)(model)


def average_statistics(model, communicator):
    """See `AverageBatchStatistics`. All ranks must call it at one point.

    Args:
        model: A built `keras.Model`.
        communicator: The `Communicator` of the ranks.
    """
    variables = moving_statistics(model)
    if communicator.workers == 1 or not variables:
        return
    own = [tf.cast(tf.convert_to_tensor(v), tf.float64) for v in variables]
    # In float64 the squares of float32 numbers lose nothing.
    flat = tf.concat([tf.reshape(value, [-1]) for value in own], 0)
    both = tf.stack([flat, tf.square(flat)])
    both = communicator.all_reduce(both, "gsnr.statistics") / communicator.workers
    if not bool(tf.reduce_all(tf.math.is_finite(both))):
        _raise_not_finite(variables, own, communicator)
    sizes = [tf.size(value) for value in own]
    mean, square = (tf.split(row, sizes) for row in tf.unstack(both))
    index = {id(variable): i for i, variable in enumerate(variables)}
    for variance, i in _variances_and_means(model, index):
        between = tf.maximum(square[i] - tf.square(mean[i]), 0.0)
        mean[variance] += between
    for variable, value in zip(variables, mean):
        variable.assign(tf.reshape(tf.cast(value, variable.dtype), variable.shape))
    count_as_averaged(model, True)


def _variances_and_means(model, index):
    """Pairs of positions of the moving variance and mean of each BatchNorm."""
    return [
        (index[id(layer.moving_variance)], index[id(layer.moving_mean)])
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization) and id(layer.moving_variance) in index
    ]


def _raise_not_finite(variables, values, communicator):
    bad = [
        variable.path
        for variable, value in zip(variables, values)
        if not bool(tf.reduce_all(tf.math.is_finite(value)))
    ]
    reports = communicator.gather(bad, "gsnr.statistics.bad")
    told = [f"rank {rank}: {', '.join(bad)}" for rank, bad in enumerate(reports) if bad]
    raise FloatingPointError(
        "Moving statistics are not finite and were not averaged, so that they stay on "
        f"the ranks that have them. Received: {'; '.join(told)}. A batch of that rank "
        "had NaN or infinite values, or the activations before this layer did."
    )
