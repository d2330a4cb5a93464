"""What a skipped update leaves behind: nothing, but a note."""

import keras
import tensorflow as tf

from gsnr_tf.callbacks.statistics import moving_statistics
from gsnr_tf.optimizers.base import DistributedStep
from gsnr_tf.optimizers.inner import inner_optimizer


class StatisticsGuard:
    """Keeps the moving statistics of the last good update, and gives them back.

    One row of NaN leaves BatchNorm's moving mean NaN for ever, though the update that
    the row spoiled was skipped and the weights are as they were.

    Args:
        model: A built, compiled `keras.Model` with an optimizer of this package.
    """

    def __init__(self, model):
        optimizer = inner_optimizer(model)
        self._optimizer = optimizer
        self._statistics = [v.value for v in moving_statistics(model)]
        self._good = [tf.Variable(v, trainable=False) for v in self._statistics]
        self._copy = _assigning(self._good, self._statistics)
        self._give_back = _assigning(self._statistics, self._good)
        self.keep()

    def keep(self):
        """Takes what there is now for good, between two updates."""
        self._skipped = int(self._optimizer.skipped_steps)
        if self._statistics:
            self._copy()

    def undo_if_skipped(self):
        """Gives statistics back if an update was skipped since; returns whether."""
        before, self._skipped = self._skipped, int(self._optimizer.skipped_steps)
        if self._skipped > before and self._statistics:
            self._give_back()
        return self._skipped > before


def _assigning(targets, sources):
    """A function that assigns all at once, in one call of TensorFlow."""

    def assign():
        for target, source in zip(targets, sources):
            target.assign(source)

    # A concrete function, since TensorFlow warns of every further model as if it were a
    # retracing.
    return tf.function(assign, autograph=False).get_concrete_function()


class SkippedUpdates(keras.callbacks.Callback):
    """Takes back what a skipped update did to moving statistics, and logs it.

    An update whose gradient is not finite is skipped by all workers together. What the
    batches of that update did to BatchNorm's statistics is undone as well, on all of
    them. From the first skipped update on, `consecutive_skips` is among the logs.
    `BroadcastGlobalVariablesCallback` does all this too.

    With `steps_per_execution`, statistics go back to before the execution.
    """

    def __init__(self):
        super().__init__()
        self._guard = None

    def on_train_begin(self, logs=None):
        self._guard, self._any = None, False
        if self.model.built:
            self._begin()

    def _begin(self):
        optimizer = inner_optimizer(self.model)
        if isinstance(optimizer, DistributedStep):
            if not optimizer.built:
                self.model.optimizer.build(self.model.trainable_variables)
            self._optimizer, self._guard = optimizer, StatisticsGuard(self.model)

    def on_train_batch_end(self, batch, logs=None):
        if self._guard is None:
            # A model without an input shape has its variables only now.
            self._begin()
        elif self._guard.undo_if_skipped():
            self._any = True
        elif self._optimizer.at_window_start:
            self._guard.keep()
        self._log(logs)

    def on_epoch_end(self, epoch, logs=None):
        self._log(logs)

    def _log(self, logs):
        if self._any and logs is not None:
            logs["consecutive_skips"] = int(self._optimizer.consecutive_skips)
