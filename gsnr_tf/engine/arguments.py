"""Optimizers and schedules by name, and the arguments that each takes."""

from gsnr_tf._sound_samples import SOUND_SAMPLES
from gsnr_tf.engine import deepspeed, signatures
from gsnr_tf.engine.errors import nearest
from gsnr_tf.rules import registry

# What the configuration decides in keys of its own.
_ELSEWHERE = {
    "gradient_accumulation_steps": "use the key `gradient_accumulation_steps`",
    "loss_scale_factor": "use `fp16`",
    "global_clipnorm": "use the key `gradient_clipping`",
    "sharding": "use `zero_optimization.stage`",
    "communicator": "the engine chooses it",
    "bucket_bytes": "use `zero_optimization.reduce_bucket_size`",
    "communication_dtype": "use `communication_data_type`",
}
# Numbers whose default is None.
_NUMBERS = {
    "weight_decay",
    "clipnorm",
    "clipvalue",
    "ema_overwrite_frequency",
    "cycle_second_step_size",
}


def sound_samples(kwargs):
    """How many samples an optimizer of the GSNR family wants with these arguments."""
    return SOUND_SAMPLES[kwargs.get("estimator", "paper")]


def keras_arguments(params):
    """DeepSpeed's `lr`, `betas` and `eps` under Keras' names.

    Raises:
        ValueError: An argument is given under both names.
    """
    renamed = dict(params)

    def rename(old, values):
        del renamed[old]
        for new, value in values.items():
            if new in renamed:
                raise ValueError(f"params has both {old!r} and {new!r}; leave one out.")
            renamed[new] = value

    for old, new in deepspeed.OPTIMIZER_ARGUMENTS.items():
        if old in params:
            rename(old, {new: params[old]})
    if "betas" in params:
        betas = params["betas"]
        pair = isinstance(betas, (list, tuple)) and len(betas) == 2
        if not pair or not all(map(_is_number, betas)):
            raise ValueError(f"params.betas must be two numbers. Received: {betas!r}")
        rename("betas", {"beta_1": betas[0], "beta_2": betas[1]})
    if isinstance(renamed.get("learning_rate"), int):
        # Keras takes floats only, and JSON has 1 for 1.0.
        renamed["learning_rate"] = float(renamed["learning_rate"])
    return renamed


def check_optimizer(name, params, make=True):
    """Raises ValueError where no optimizer of this name and arguments can be made.

    Args:
        name: String.
        params: Dict, arguments of the optimizer.
        make: Whether to make it, too, which loads TensorFlow.
    """
    rule = signatures.optimizer(name)
    if rule is None:
        advice = deepspeed.OPTIMIZERS.get(name.lower())
        if advice:
            raise ValueError(f"type {name!r} of DeepSpeed is not supported: {advice}.")
        raise ValueError(
            f"type {name!r} is unknown.{nearest(name, signatures.optimizers())} "
            f"Known: {', '.join(signatures.optimizers())}."
        )
    words = keras_arguments(params)
    if set(words) - set(rule.arguments):
        # The installed Keras may be newer, and know more.
        rule = signatures.signature_of(signatures.installed_class(name))
    _check_params(rule, words, deepspeed.OPTIMIZER_PARAMS, [*deepspeed.OPTIMIZER_ARGUMENTS])
    _check_kinds(rule, params, deepspeed.OPTIMIZER_ARGUMENTS)
    if not make:
        return
    try:
        signatures.installed_class(name)(**words)
    except (TypeError, ValueError) as error:
        raise ValueError(f"params: {error}") from error


def check_scheduler(name, params, make=True):
    """Raises ValueError where a schedule of this name and arguments cannot be made.

    Args:
        name: String, one of `signatures.schedules()`.
        params: Dict, arguments of the schedule.
        make: Whether to make it, too, which loads TensorFlow.
    """
    rule = signatures.schedules()[name]
    _check_params(rule, params, deepspeed.SCHEDULER_PARAMS)
    _check_kinds(rule, params)
    missing = [
        argument
        for argument, default in rule.arguments.items()
        if default is signatures.REQUIRED and argument not in {*params, "learning_rate"}
    ]
    if missing:
        raise ValueError(f"params needs {', '.join(missing)} for {name}.")
    if not make:
        return
    try:
        make_schedule(name, params, 0.1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"params: {error}") from error


def make_schedule(name, params, learning_rate):
    """The schedule of a name; `learning_rate` is the optimizer's."""
    from gsnr_tf.schedules import DEEPSPEED

    return DEEPSPEED[name](**schedule_arguments(name, params, learning_rate))


def schedule_arguments(name, params, learning_rate):
    """What `make_schedule` passes on: `params`, and the rate where it is asked for."""
    if "learning_rate" in signatures.schedules()[name].arguments:
        return {"learning_rate": learning_rate, **params}
    return params


def _check_params(rule, params, unsupported, more=()):
    known = sorted(set(rule.arguments) - set(_ELSEWHERE))
    for key in params:
        if key in known:
            continue
        if key in _ELSEWHERE:
            raise ValueError(f"params.{key}: {_ELSEWHERE[key]}.")
        if key in unsupported:
            raise ValueError(f"params.{key} of DeepSpeed is not supported: {unsupported[key]}.")
        raise ValueError(
            f"params.{key} is unknown.{nearest(key, [*known, *more])} "
            f"{rule.name} takes: {', '.join(known)}."
        )


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_kinds(rule, params, other_names=None):
    """Raises ValueError for what is not a number, or not true or false, and must be."""
    defaults = rule.arguments
    for key, value in params.items():
        name = (other_names or {}).get(key, key)
        if name not in defaults or (value is None and defaults[name] is None):
            continue
        default = defaults[name]
        needed = default is signatures.REQUIRED
        if isinstance(default, bool):
            kind, fits = "true or false", isinstance(value, bool)
        elif needed or name in _NUMBERS or _is_number(default):
            kind, fits = "a number", _is_number(value)
        else:
            continue
        if value == "auto":
            raise ValueError(
                f"params.{key}: 'auto' is not filled in by anyone here. Write the value."
            )
        if not fits:
            raise ValueError(f"params.{key} must be {kind}. Received: {value!r}")


def check_together(config):
    """Raises ValueError where sections of the configuration contradict each other."""
    rule = signatures.optimizer(config.optimizer.type)
    for key in ("gamma", "ceiling", "estimator", "monitor_interval", "batch_ramp"):
        if getattr(config.gsnr, key) is None:
            continue
        if not rule.gsnr:
            raise ValueError(
                f"gsnr.{key} needs an optimizer of the GSNR family. Received: "
                f"optimizer.type={config.optimizer.type!r}."
            )
        if key in config.optimizer.params:
            raise ValueError(f"gsnr.{key} is also in optimizer.params; leave one out.")
    _check_ramp(config)
    stage, bucket = (
        config.zero_optimization.stage,
        config.zero_optimization.reduce_bucket_size,
    )
    needs = {
        "zero_optimization.stage": stage,
        "zero_optimization.reduce_bucket_size": bucket,
        "communication_data_type": config.communication_data_type,
    }
    for key, value in needs.items():
        if value and not rule.gsnr:
            raise ValueError(
                f"{key}={value!r} needs an optimizer of the GSNR family, and "
                f"{rule.name} is Keras' own. Take one of "
                f"{', '.join(registry.BY_OPTIMIZER)} with gsnr.gamma 1 and gsnr.ceiling 1, "
                f"which are the plain rules, or leave {key} out."
            )
    if config.gradient_clipping and {"clipnorm", "clipvalue"} & set(config.optimizer.params):
        raise ValueError(
            "gradient_clipping excludes clipnorm and clipvalue in optimizer.params; keep one."
        )


def _check_ramp(config):
    ramp, interval = config.gsnr.batch_ramp, config.gsnr.monitor_interval
    if ramp is None:
        return
    if ramp.every and interval and ramp.every != interval:
        raise ValueError(
            "gsnr.batch_ramp looks at what gsnr.monitor_interval records. Received:"
            f" every={ramp.every} and monitor_interval={interval}. Leave `every` out."
        )
