"""What a configuration comes to on a number of ranks, in words."""

from gsnr_tf.engine import arguments, signatures
from gsnr_tf.engine.keywords import optimizer_keywords
from gsnr_tf.engine.notices import grouped


def explain(config, ranks, *, rates=True):
    """Pairs of a key and what it comes to.

    Args:
        config: The `Config`.
        ranks: Int.
        rates: Whether to tell what a schedule gives some updates. That loads TensorFlow.

    Raises:
        ConfigError: It cannot be used on so many ranks.
    """
    batch = config.batch(ranks)
    rule, kwargs = optimizer_keywords(config, batch)
    rows = [
        *_sizes(config, batch),
        ("optimizer", _optimizer(config, rule, kwargs)),
        *_defaults(rule, kwargs),
        *_schedule(config, batch, kwargs, rates),
        ("gradient_clipping", config.gradient_clipping or "none"),
        ("precision", _precision(config)),
        ("zero_optimization", _sharing(config, rule, kwargs)),
        ("communication_data_type", config.communication_data_type or "fp32"),
        ("steps_per_print", config.steps_per_print or "never"),
    ]
    if rule.gsnr:
        rows.insert(3, ("samples (k)", _samples(batch, kwargs)))
    rows += [*_ramp(config, batch), *_what_is_written(config)]
    for heading, found in grouped(config.decisions):
        rows.append((heading, ""))
        rows += _decided(found)
    return rows


def _decided(decisions):
    """Those of one section to which the same happens in one line."""
    alike = {}
    for one in decisions:
        section, _, name = one.key.rpartition(".")
        alike.setdefault((section, one.text), []).append(name)
    for (section, text), names in alike.items():
        if section:
            yield f"  {section}", f"{', '.join(names)}: {text}"
        else:
            yield from ((f"  {name}", text) for name in names)


def _sizes(config, batch):
    for name, size in (
        ("train_batch_size", batch.train),
        ("train_micro_batch_size_per_gpu", batch.micro),
        ("gradient_accumulation_steps", batch.accumulation),
    ):
        derived = getattr(config, name) is None
        yield name, f"{size} (derived, on {batch.ranks} ranks)" if derived else size


def _samples(batch, kwargs):
    k, text = batch.samples, f" × {batch.accumulation} micro-batches"
    if kwargs.get("sample") == "worker":
        k, text = batch.ranks, ""
    text = f"{k} = {batch.ranks} ranks{text}"
    if k < 2:
        return f"{text}: too few, the optimizer will refuse; halve the micro-batch"
    sound = arguments.sound_samples(kwargs)
    return text if k >= sound else f"{text}: fewer than {sound}, a poor estimate"


def _optimizer(config, rule, kwargs):
    if config.scheduler:
        kwargs = {k: v for k, v in kwargs.items() if k != "learning_rate"}
    return _call(rule.name, kwargs)


# Arguments of every optimizer of Keras: their defaults switch off what they do.
_OF_ALL = {
    "clipnorm", "clipvalue", "global_clipnorm", "use_ema", "ema_momentum", "name",
    "ema_overwrite_frequency", "loss_scale_factor", "gradient_accumulation_steps",
}  # fmt: skip


def _defaults(rule, kwargs):
    """What the optimizer has of its own accord."""
    left = {
        name: value
        for name, value in rule.arguments.items()
        if name not in kwargs and name not in _OF_ALL and value is not signatures.REQUIRED
    }
    if left:
        yield "", "defaults: " + ", ".join(f"{k}={v!r}" for k, v in left.items())


def _call(name, kwargs):
    return f"{name}({', '.join(f'{k}={v!r}' for k, v in kwargs.items())})"


def _schedule(config, batch, kwargs, rates):
    if not config.scheduler:
        return
    name, params = config.scheduler.type, config.scheduler.params
    rate = kwargs["learning_rate"]
    defaults = signatures.schedules()[name].arguments
    values = {**defaults, **arguments.schedule_arguments(name, params, rate)}
    yield "scheduler", _call(name, values)
    points = {0, 1, values.get("warmup_num_steps"), values.get("cycle_first_step_size")}
    points |= {values.get("total_num_steps")}
    if rates:
        schedule = arguments.make_schedule(name, params, rate)
        for update in sorted(point for point in points if point is not None):
            yield "", f"update {update}: {float(schedule(update)):.3g}"
    if config.gsnr.batch_ramp:
        yield "", f"(updates of {batch.train} examples, whatever the batch)"


def _ramp(config, batch):
    ramp = config.gsnr.batch_ramp
    if ramp is None:
        return
    sizes = [batch.train]
    while 2 * sizes[-1] <= ramp.max_train_batch_size:
        sizes.append(2 * sizes[-1])
    factor = {"linear": "2", "sqrt": "√2", "adascale": "AdaScale's gain"}[ramp.scaling]
    yield "gsnr.batch_ramp", " > ".join(map(str, sizes)) + " examples an update"
    yield "", f"learning rate × {factor} at each step"


def _what_is_written(config):
    for name in ("tensorboard", "csv_monitor"):
        sink = getattr(config, name)
        if sink.enabled:
            yield name, f"{sink.output_path}/{sink.job_name}"
    if config.wall_clock_breakdown:
        yield "wall_clock_breakdown", "with each printed line"
    if config.flops_profiler.enabled:
        yield "flops_profiler", f"at update {config.flops_profiler.profile_step}"


def _precision(config):
    if config.bf16.enabled:
        return "mixed_bfloat16"
    if not config.fp16.enabled:
        return "the model's own"
    if config.fp16.loss_scale:
        return f"mixed_float16, loss × {config.fp16.loss_scale:g}"
    fp16 = config.fp16
    return (
        f"mixed_float16, loss × {2**fp16.initial_scale_power} at first"
        f" (window {fp16.loss_scale_window}, hysteresis {fp16.hysteresis}, at least"
        f" {fp16.min_loss_scale:g})"
    )


def _sharing(config, rule, kwargs):
    if not rule.gsnr:
        return "every rank has all state"
    if config.zero_optimization.stage is None:
        return "as the optimizer decides"
    if kwargs["sharding"] == "slices":
        return "each rank has the state of its slice"
    return "every rank has all state"
