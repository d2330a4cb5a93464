"""Any Keras optimizer on several workers: the baseline, and Horovod's wrapper anew."""

import functools

import keras

from gsnr_tf.optimizers.base import DistributedStep

# Keras has it from 3.15 on. Nothing is an instance of ().
_MultiOptimizer = getattr(keras.optimizers, "MultiOptimizer", ())
_KERAS_RULES = {
    rule
    for rule in vars(keras.optimizers).values()
    if isinstance(rule, type)
    and issubclass(rule, keras.optimizers.Optimizer)
    and rule is not keras.optimizers.Optimizer
    and rule is not keras.optimizers.LossScaleOptimizer
    and rule is not _MultiOptimizer
}


@functools.cache
def _distributed_class(rule):
    """The subclass of an optimizer class whose steps are those of all workers."""
    of_keras = rule in _KERAS_RULES
    bases = (rule, DistributedStep) if of_keras else (_UserRule, rule, DistributedStep)
    made = type(f"Distributed{rule.__name__}", bases, {})
    made.__module__ = __name__
    made.__doc__ = rule.__doc__
    made._rule = rule
    if of_keras:
        return keras.saving.register_keras_serializable("gsnr_tf")(made)
    _wrapped[_full_name(rule)] = rule
    return _registered_for_user_rules(made)


# Users' classes that were wrapped in this process, by module and name.
_wrapped = {}
# All distributed classes of users' rules are saved under one name, since only that can
# be known before a model is loaded; the config says which rule it is.
_registered_for_user_rules = keras.saving.register_keras_serializable(
    "gsnr_tf", name="DistributedOptimizer"
)


@_registered_for_user_rules
class _UserRule:
    """Saves a distributed optimizer whose rule is a class of the user.

    Its config has one more entry, "rule", that names the class.
    """

    def get_config(self):
        registered = keras.saving.get_registered_name(self._rule)
        names = {"class": _full_name(self._rule), "registered_name": registered}
        return {**super().get_config(), "rule": names}

    @classmethod
    def from_config(cls, config, *args, **kwargs):
        if "rule" not in config:
            return super().from_config(config, *args, **kwargs)
        config = dict(config)
        rule = _found_rule(**config.pop("rule"))
        return _distributed_class(rule).from_config(config, *args, **kwargs)


def _full_name(rule):
    return f"{rule.__module__}.{rule.__qualname__}"


def _found_rule(registered_name, **names):
    """The class of a user's rule: from custom objects, or as it was wrapped before."""
    found = keras.saving.get_registered_object(registered_name)
    found = found or _wrapped.get(names["class"])
    if not (isinstance(found, type) and issubclass(found, keras.optimizers.Optimizer)):
        raise ValueError(
            "The saved optimizer is a DistributedOptimizer around the class "
            f"{names['class']}, which Keras does not know in this process. Pass "
            f"custom_objects={{{registered_name!r}: …}} with that class to the function "
            f"that loads it. Found under this name: {found!r}."
        )
    return found


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
        A new optimizer of a subclass of `type(optimizer)`, of the same config. To load
        a model that was saved with it, Keras must know `type(optimizer)`: a class of
        your own by `custom_objects`, or registered.

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
            "Wrap the inner optimizer: LossScaleOptimizer(DistributedOptimizer(optimizer))."
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
for _rule in _KERAS_RULES:
    _distributed_class(_rule)
