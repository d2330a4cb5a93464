"""The optimizer that a configuration describes."""

from gsnr_tf.engine import arguments
from gsnr_tf.engine.errors import ConfigError
from gsnr_tf.optimizers import DistributedOptimizer
from gsnr_tf.resilience import LossScaleOptimizer

# DeepSpeed's names of the types in which gradients travel.
_WIRE = {"fp32": "float32", "fp16": "float16", "bfp16": "bfloat16"}


def optimizer_arguments(config, batch):
    """Class of the optimizer, and the arguments of its constructor.

    Args:
        config: The `Config`.
        batch: The `Batch` that it resolves to.

    Raises:
        ConfigError: A key needs an argument that the optimizer does not have.
    """
    rule = arguments.optimizer_class(config.optimizer.type)
    kwargs = arguments.in_keras_words(config.optimizer.params)
    if batch.accumulation > 1:
        kwargs["gradient_accumulation_steps"] = batch.accumulation
    if config.gradient_clipping:
        kwargs["global_clipnorm"] = config.gradient_clipping
    if config.fp16.enabled and config.fp16.loss_scale:
        kwargs["loss_scale_factor"] = config.fp16.loss_scale
    if config.scheduler:
        rate = kwargs.get("learning_rate", rule()._learning_rate)
        kwargs["learning_rate"] = arguments.make_schedule(
            config.scheduler.type,
            config.scheduler.params,
            float(rate),
        )
    if arguments.is_gsnr(rule):
        kwargs.update(_gsnr_arguments(config, batch))
        if "sample" in arguments.accepted(rule):
            # The same samples on any number of ranks.
            kwargs.setdefault("sample", "micro_batch")
    unknown = set(kwargs) - set(arguments.accepted(rule))
    if unknown:
        raise ConfigError(
            f"{rule.__name__} does not take {', '.join(sorted(unknown))} in this"
            " version."
        )
    return rule, kwargs


def _gsnr_arguments(config, batch):
    keys = ("gamma", "ceiling", "estimator")
    given = {key: getattr(config.gsnr, key) for key in keys}
    zero = config.zero_optimization
    if zero.stage is not None:
        given["sharding"] = "slices" if zero.stage and batch.ranks > 1 else "none"
    if zero.reduce_bucket_size:
        given["bucket_bytes"] = 4 * zero.reduce_bucket_size
    if config.communication_data_type:
        given["communication_dtype"] = _WIRE[config.communication_data_type]
    return {name: value for name, value in given.items() if value is not None}


def build_optimizer(config, batch):
    """The optimizer, which reduces gradients over all ranks; not yet built.

    See `optimizer_arguments`.
    """
    rule, kwargs = optimizer_arguments(config, batch)
    optimizer = rule(**kwargs)
    if not arguments.is_gsnr(rule):
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
