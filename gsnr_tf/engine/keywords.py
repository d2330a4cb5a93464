"""What the optimizer of a configuration is made with."""

from gsnr_tf.engine import arguments
from gsnr_tf.engine.errors import ConfigError

# DeepSpeed's names of the types in which gradients travel.
_WIRE = {"fp32": "float32", "fp16": "float16", "bfp16": "bfloat16"}


def optimizer_keywords(config, batch):
    """`Signature` of the optimizer, and the arguments of its constructor.

    The learning rate among them is the optimizer's own, a float, also where there is a
    schedule. TensorFlow is not loaded.

    Args:
        config: The `Config`.
        batch: The `Batch` that it resolves to.

    Raises:
        ConfigError: A key needs an argument that the optimizer does not have.
    """
    rule = config.rule
    kwargs = arguments.keras_arguments(config.optimizer.params)
    if batch.accumulation > 1:
        kwargs["gradient_accumulation_steps"] = batch.accumulation
    if config.gradient_clipping:
        kwargs["global_clipnorm"] = config.gradient_clipping
    if config.fp16.enabled and config.fp16.loss_scale:
        kwargs["loss_scale_factor"] = config.fp16.loss_scale
    if config.scheduler:
        kwargs.setdefault("learning_rate", rule.arguments.get("learning_rate", 0.001))
    if rule.gsnr:
        kwargs.update(_gsnr_keywords(config, batch))
        if "sample" in rule.arguments:
            # The same samples on any number of ranks.
            kwargs.setdefault("sample", "micro_batch")
    unknown = set(kwargs) - set(rule.arguments) - set(config.optimizer.params)
    if unknown:
        raise ConfigError(
            f"{rule.name} does not take {', '.join(sorted(unknown))} in this version."
        )
    return rule, kwargs


def _gsnr_keywords(config, batch):
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
