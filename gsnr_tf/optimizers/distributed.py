"""Any Keras optimizer on several workers: the baseline, and Horovod's wrapper anew."""

import functools

import keras

from gsnr_tf.optimizers.base import DistributedStep

# Keras has it from 3.15 on. Nothing is an instance of ().
_MultiOptimizer = getattr(keras.optimizers, "MultiOptimizer", ())


@functools.cache
def _distributed_class(rule):
    """The subclass of a Keras optimizer class whose steps are those of all workers."""
    made = type(f"Distributed{rule.__name__}", (rule, DistributedStep), {})
    made.__module__ = __name__
    made.__doc__ = rule.__doc__
    return keras.saving.register_keras_serializable("gsnr_tf")(made)


def DistributedOptimizer(optimizer):
    """Makes a Keras optimizer update by the mean gradient of all workers.

    What `horovod.tensorflow.keras.DistributedOptimizer` was for Keras 2; under
    Keras 3 that one trains every rank by itself, without an error. Works for ranks,
    for replicas, and (as the optimizer itself) in a single process. Gradients are
    reduced once for each update, also with `gradient_accumulation_steps`; clipping
    acts on the reduced gradient; a gradient that is not finite on any worker makes
    all of them skip the update.

    Args:
        optimizer: A `keras.optimizers.Optimizer` that has not been built.

    Returns:
        A new optimizer of a subclass of `type(optimizer)`, of the same config.

    Raises:
        TypeError: `optimizer` is something else.
        ValueError: `optimizer` is already built, or reduces by itself.
    """
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            "DistributedOptimizer takes an instance of keras.optimizers.Optimizer, "
            f"such as keras.optimizers.Lamb(0.001). Received: {optimizer!r}"
        )
    if isinstance(optimizer, DistributedStep):
        raise ValueError(
            f"{type(optimizer).__name__} reduces its gradients by itself; pass it to "
            "`compile` as it is."
        )
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            "Wrap the inner optimizer: "
            "LossScaleOptimizer(DistributedOptimizer(optimizer))."
        )
    if isinstance(optimizer, _MultiOptimizer):
        raise ValueError(
            "MultiOptimizer leaves the updates to its inner optimizers. Wrap each of "
            "them: MultiOptimizer(OptimizerMap(DistributedOptimizer(optimizer)))."
        )
    if optimizer.built:
        raise ValueError(
            f"{type(optimizer).__name__} '{optimizer.name}' is already built, and its "
            "state would be lost. Wrap it before the first step."
        )
    config = optimizer.get_config()
    if not isinstance(optimizer._learning_rate, keras.Variable):
        # A schedule or a callable may be one that no config can express.
        config["learning_rate"] = optimizer._learning_rate
    made = _distributed_class(type(optimizer)).from_config(config)
    for name in ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern"):
        # Keras keeps what `exclude_from_weight_decay` was told out of the config.
        if hasattr(optimizer, name):
            setattr(made, name, getattr(optimizer, name))
    return made


# Known to Keras from the start, so that a saved model can be loaded by name.
for _rule in vars(keras.optimizers).values():
    if (
        isinstance(_rule, type)
        and issubclass(_rule, keras.optimizers.Optimizer)
        and _rule is not keras.optimizers.Optimizer
        and _rule is not keras.optimizers.LossScaleOptimizer
        and _rule is not _MultiOptimizer
    ):
        _distributed_class(_rule)
