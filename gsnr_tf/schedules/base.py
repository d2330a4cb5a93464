"""What the schedules share: a rate for each update."""

import functools
import warnings

import keras
import tensorflow as tf


def registered(rule):
    """Class decorator: makes a schedule known to Keras, under "gsnr_tf>" and its name.

    The constructor goes on to take `accumulation_steps`, of code for version 0.1, with a
    warning; its signature does not show it.
    """
    construct = rule.__init__

    @functools.wraps(construct)
    def __init__(self, *args, accumulation_steps=None, **kwargs):
        if accumulation_steps is not None:
            warnings.warn(
                f"{type(self).__name__} needs no accumulation_steps any more: optimizers "
                "of gsnr_tf count updates. It is ignored. Received: "
                f"accumulation_steps={accumulation_steps}",
                DeprecationWarning,
                stacklevel=2,
            )
        construct(self, *args, **kwargs)

    rule.__init__ = __init__
    return keras.saving.register_keras_serializable("gsnr_tf")(rule)


class UpdateSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Base of the schedules: the rate of update t = 0, 1, 2, …

    A subclass writes `rate`, and keeps each argument of its constructor in an attribute
    of the same name.
    """

    def __call__(self, step):
        """The learning rate, a scalar float32 tensor.

        Args:
            step: Scalar number or tensor. Optimizers of gsnr_tf pass the number of
                updates so far; those of Keras that of calls, which are micro-batches
                where gradients accumulate.
        """
        # float64: float32 counts no further than 2^24.
        return tf.cast(self.rate(tf.cast(step, tf.float64)), tf.float32)

    def rate(self, t):
        """Learning rate of update `t`, a scalar float64 tensor; from 0."""
        raise NotImplementedError(f"{type(self).__name__} has no rate")

    def get_config(self):
        """Arguments of the constructor: attributes of the same names."""
        return dict(vars(self))

    @classmethod
    def from_config(cls, config):
        """The schedule of a config, of version 0.1 too.

        That one has `accumulation_steps`, by which the schedule itself made updates of
        calls. The optimizer does so now.
        """
        return cls(**{k: v for k, v in config.items() if k != "accumulation_steps"})
