"""Dynamic loss scaling decided by all workers together.

Keras' `LossScaleOptimizer` looks at local gradients and skips the whole step, the
collectives included, on the worker that overflowed. The others wait for it, or
train on without it.
"""

import keras
import tensorflow as tf

from gsnr_tf.optimizers.base import DistributedStep
from gsnr_tf.optimizers.state import WholeState

_KerasLossScaleOptimizer = keras.optimizers.LossScaleOptimizer


@keras.saving.register_keras_serializable("gsnr_tf")
class LossScaleOptimizer(WholeState, _KerasLossScaleOptimizer):
    """Scales the loss; leaves the decision on overflow to the inner optimizer.

    The inner optimizer (of this package) sees every gradient, finite or not, and
    skips an update where the reduced gradient is not finite: a decision that costs
    no collective of its own and is the same on all workers. With accumulation it
    concerns the whole window of micro-batches, within which the scale is constant.
    Skipped, the scale is halved; after `dynamic_growth_steps` updates in a row it is
    doubled. With a `hysteresis` of h, the first h − 1 overflows since it was last
    doubled only skip their update.

    Keras wraps optimizers in its own class, in `compile` under a float16 policy or
    by the user's hand. Where the inner optimizer is one of this package's, Keras'
    constructor yields this class instead (see the end of this file).

    Args:
        inner_optimizer, initial_scale, dynamic_growth_steps, name: As in Keras.
        hysteresis: Int, at least 1. Defaults to 1.
        min_scale: Float, below which the scale does not fall. Defaults to 0.
    """

    def __init__(self, inner_optimizer, *args, hysteresis=1, min_scale=0.0, **kwargs):
        super().__init__(inner_optimizer, *args, **kwargs)
        if hysteresis < 1:
            raise ValueError(f"hysteresis must be at least 1. Received: hysteresis={hysteresis}")
        if not 0 <= min_scale <= self.initial_scale:
            raise ValueError(
                "min_scale must be between 0 and initial_scale. Received: "
                f"min_scale={min_scale}, initial_scale={self.initial_scale}"
            )
        self.hysteresis = hysteresis
        self.min_scale = min_scale
        inner_optimizer.is_scaled_by(self)

    def build(self, var_list):
        if self.built:
            return
        # Keras' own are mirrored without aggregation, and cannot be assigned in a
        # replica.
        self.step_counter = self.add_variable(
            (), dtype="int", aggregation="only_first_replica", name="step_counter"
        )
        self.dynamic_scale = self.add_variable(
            (),
            dtype="float32",
            initializer=keras.initializers.Constant(self.initial_scale),
            aggregation="only_first_replica",
            name="dynamic_scale",
        )
        if self.hysteresis > 1:
            self.overflows = self.add_variable(
                (), dtype="int", aggregation="only_first_replica", name="overflows"
            )
        self.inner_optimizer.build(var_list)
        keras.optimizers.Optimizer.build(self, var_list)

    def apply_gradients(self, grads_and_vars, examples=None):
        """See `DistributedStep.apply_gradients`; gradients are of the scaled loss."""
        gradients, variables = zip(*grads_and_vars)
        self.apply(gradients, variables, examples=examples)
        return self.inner_optimizer.count_of_calls

    def apply(self, grads, trainable_variables=None, examples=None):
        if not self.built:
            # Within the trace, so that tf.function makes another: in this one Keras has
            # scaled the loss by a constant.
            self.build(list(trainable_variables))
        variables = trainable_variables or self._trainable_variables
        inner = self.inner_optimizer
        skipped, updates = inner.skipped_steps, inner.iterations + 0
        unscaled = [
            (
                g
                if g is None or self._overwrite_variable_with_gradient(v)
                else keras.ops.divide(g, self.dynamic_scale)
            )
            for g, v in zip(grads, variables)
        ]
        inner.apply(unscaled, trainable_variables, examples=examples)
        self._rescale(inner.skipped_steps > skipped, inner.iterations > updates)

    def may_fall(self):
        """Whether the next overflow can lower the scale, a scalar boolean tensor. Below 1
        it is no scale for gradients that are too small."""
        floor = max(self.min_scale, 1.0)
        return tf.convert_to_tensor(self.dynamic_scale) > floor

    # ---- state: own, then the inner optimizer's -----------------------------------

    def full_state(self):
        return [*self._variables, *self.inner_optimizer.full_state()]

    def all_state(self):
        return [*self._variables, *self.inner_optimizer.all_state()]

    def window_state(self):
        return self.inner_optimizer.window_state()

    def reset_window(self):
        """See `DistributedStep.reset_window`."""
        self.inner_optimizer.reset_window()

    @property
    def at_window_start(self):
        """See `DistributedStep.at_window_start`."""
        return self.inner_optimizer.at_window_start

    @property
    def accumulation_steps(self):
        """See `DistributedStep.accumulation_steps`."""
        return self.inner_optimizer.accumulation_steps

    @property
    def count_of_calls(self):
        return self.inner_optimizer.count_of_calls

    @property
    def is_alone(self):
        return self.inner_optimizer.is_alone

    def _rescale(self, skipped, updated):
        counter = self.step_counter + tf.cast(updated, self.step_counter.dtype)
        grown = counter >= self.dynamic_growth_steps
        halved = self._count_overflow(skipped, grown)
        factor = tf.where(halved, 0.5, tf.where(grown, 2.0, 1.0))
        restart = tf.logical_or(skipped, grown)
        scale = tf.maximum(self.dynamic_scale * factor, self.min_scale)
        self.dynamic_scale.assign(scale)
        self.step_counter.assign(tf.where(restart, tf.zeros_like(counter), counter))

    def _count_overflow(self, skipped, grown):
        """Whether this overflow halves the scale."""
        if self.hysteresis == 1:
            return skipped
        counted = self.overflows + tf.cast(skipped, self.overflows.dtype)
        # Once it is reached every overflow halves, until the scale has grown again.
        counted = tf.where(grown, tf.zeros_like(counted), counted)
        self.overflows.assign(counted)
        return tf.logical_and(skipped, counted >= self.hysteresis)

    def get_config(self):
        config = {"hysteresis": self.hysteresis, "min_scale": self.min_scale}
        return {**super().get_config(), **config}


def _construct(cls, inner_optimizer=None, *args, **kwargs):
    if cls is _KerasLossScaleOptimizer and isinstance(inner_optimizer, DistributedStep):
        cls = LossScaleOptimizer
    return object.__new__(cls)


# `compile` names Keras' class and asks nobody; its constructor is the one place
# where every wrapping, by Keras or by hand, passes through.
_KerasLossScaleOptimizer.__new__ = staticmethod(_construct)
