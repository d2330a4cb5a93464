"""The optimizer that a configuration describes."""

from gsnr_tf.engine import arguments, signatures
from gsnr_tf.engine.keywords import optimizer_keywords
from gsnr_tf.optimizers import DistributedOptimizer, LossScaleOptimizer


def optimizer_arguments(config, batch):
    """Class of the optimizer, and the arguments of its constructor.

    See `optimizer_keywords`; here the learning rate is the schedule, where there is one.
    """
    rule, kwargs = optimizer_keywords(config, batch)
    if config.scheduler:
        kwargs["learning_rate"] = arguments.make_schedule(
            config.scheduler.type,
            config.scheduler.params,
            kwargs["learning_rate"],
        )
    return signatures.installed_class(rule.name), kwargs


def build_optimizer(config, batch):
    """The optimizer, which reduces gradients over all ranks; not yet built.

    See `optimizer_arguments`.
    """
    rule, kwargs = optimizer_arguments(config, batch)
    optimizer = rule(**kwargs)
    if not signatures.optimizer(config.optimizer.type).gsnr:
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
