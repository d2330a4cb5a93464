"""Statistics that layers gather while they train, BatchNorm's say, over all ranks."""

import keras
import tensorflow as tf


def moving_statistics(model):
    """Variables that the forward pass changes: floating, of layers that are trained."""
    return [
        variable
        for layer in model._flatten_layers()
        if layer.trainable
        for variable in layer._non_trainable_variables
        if tf.as_dtype(variable.dtype).is_floating
    ]


def average(model, communicator):
    """Replaces each moving statistic by its mean over the ranks. All must call it.

    A moving variance becomes the mean of the ranks' variances, which leaves out how far
    their means are apart; with batches of one distribution that is little.
    """
    variables = moving_statistics(model)
    if communicator.workers == 1 or not variables:
        return
    flat = tf.concat([tf.reshape(tf.cast(v, tf.float32), [-1]) for v in variables], 0)
    mean = communicator.all_reduce(flat, "gsnr.statistics") / communicator.workers
    sizes = [tf.size(v) for v in variables]
    for variable, value in zip(variables, tf.split(mean, sizes)):
        variable.assign(tf.reshape(tf.cast(value, variable.dtype), variable.shape))


class AverageStatistics(keras.callbacks.Callback):
    """Averages before each evaluation and at the end of each epoch."""

    def __init__(self, communicator):
        super().__init__()
        self._comm = communicator

    def on_test_begin(self, logs=None):
        average(self.model, self._comm)

    def on_epoch_end(self, epoch, logs=None):
        average(self.model, self._comm)
