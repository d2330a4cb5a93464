"""The optimizer that a configuration describes."""

import keras

from gsnr_tf.engine import arguments, signatures
from gsnr_tf.engine.errors import ConfigError
from gsnr_tf.engine.keywords import optimizer_keywords
from gsnr_tf.optimizers import DistributedOptimizer, LossScaleOptimizer
from gsnr_tf.optimizers.gsnr import GSNROptimizer


def optimizer_arguments(config, batch):
    """Class of the optimizer, and the arguments of its constructor.

    See `optimizer_keywords`; here the learning rate is the schedule, where there is one.
    """
    _, kwargs = optimizer_keywords(config, batch)
    if config.scheduler:
        kwargs["learning_rate"] = arguments.make_schedule(
            config.scheduler.type,
            config.scheduler.params,
            kwargs["learning_rate"],
        )
    return signatures.installed_class(config.optimizer.type), kwargs


def build_optimizer(config, batch, given=None, schedule=None):
    """The optimizer, which reduces gradients over all ranks; not yet built.

    Args:
        config: The `Config`.
        batch: The `Batch` that it resolves to.
        given: A `keras.optimizers.Optimizer` that takes the place of the configuration's.
        schedule: A `keras.optimizers.schedules.LearningRateSchedule` that takes the place
            of the configuration's.
    """
    if given is None:
        rule, kwargs = optimizer_arguments(config, batch)
    else:
        rule, kwargs = type(given), _of_given(config, batch, given)
    if schedule is not None:
        kwargs["learning_rate"] = schedule
    optimizer = rule.from_config(kwargs) if given is not None else rule(**kwargs)
    if not isinstance(optimizer, GSNROptimizer):
        optimizer = DistributedOptimizer(optimizer)
    fp16 = config.fp16
    if fp16.enabled and not fp16.loss_scale:
        optimizer = LossScaleOptimizer(
            optimizer,
            initial_scale=2.0**fp16.initial_scale_power,
            dynamic_growth_steps=fp16.loss_scale_window,
            hysteresis=fp16.hysteresis,
            min_scale=fp16.min_loss_scale,
        )
    return optimizer


def check_given(optimizer):
    """Raises ConfigError for what `initialize(optimizer=…)` cannot take."""
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise ConfigError(
            "optimizer must be a keras.optimizers.Optimizer, such as"
            f" keras.optimizers.AdamW(0.001). Received: {type(optimizer).__name__}"
        )
    name = type(optimizer).__name__
    if name.endswith(("LossScaleOptimizer", "MultiOptimizer")) or name.startswith("Distributed"):
        raise ConfigError(
            "optimizer must be the plain one: the engine scales the loss and reduces the"
            f" gradients. Received: {name}"
        )
    if optimizer.built:
        raise ConfigError(f"optimizer '{optimizer.name}' is built already. Make a new one.")


def _of_given(config, batch, given):
    """Config of an optimizer that was given, with what the configuration decides."""
    kwargs = given.get_config()
    if not isinstance(given._learning_rate, keras.Variable):
        # A schedule or a callable may be one that no config can express.
        kwargs["learning_rate"] = given._learning_rate
    _, decided = optimizer_keywords(config, batch)
    rate = decided.pop("learning_rate", None)
    if rate is not None and config.scheduler:
        if not isinstance(kwargs["learning_rate"], float):
            raise ConfigError(
                "The configuration has a scheduler, and the optimizer's learning rate is a"
                " schedule; leave one out."
            )
        kwargs["learning_rate"] = arguments.make_schedule(
            config.scheduler.type, config.scheduler.params, kwargs["learning_rate"]
        )
    if kwargs.get("sample", "auto") != "auto":
        decided.pop("sample", None)
    for name in ("clipnorm", "clipvalue"):
        if "global_clipnorm" in decided and kwargs.get(name):
            raise ConfigError(f"gradient_clipping excludes {name} of the optimizer; keep one.")
    return {**kwargs, **decided}
