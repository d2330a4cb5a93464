"""Optimizers and schedules by name, and the arguments that each takes."""

from gsnr_tf._sound_samples import SOUND_SAMPLES
from gsnr_tf.engine import signatures
from gsnr_tf.engine.deepspeed import table
from gsnr_tf.engine.errors import nearest, printable, shown
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
    "l2",
}
# Beyond this, float32 has no numbers.
_LARGEST = 3.4e38
_MAY_BE_NEGATIVE = {"learning_rate_power", "dampening", "trust_coefficient"}
_WHOLE = {
    "warmup_num_steps",
    "total_num_steps",
    "cycle_first_step_size",
    "cycle_second_step_size",
    "cycle_first_stair_count",
    "cycle_second_stair_count",
    "decay_step_size",
    "lr_range_test_step_size",
    "ema_overwrite_frequency",
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

    for old, new in table.ARGUMENT_NAMES.items():
        if old in params:
            rename(old, {new: params[old]})
    if "betas" in params:
        betas = params["betas"]
        pair = isinstance(betas, (list, tuple)) and len(betas) == 2
        if not pair or not all(map(_is_number, betas)):
            raise ValueError(f"params.betas must be two numbers. Received: {shown(betas)}")
        rename("betas", {"beta_1": betas[0], "beta_2": betas[1]})
    if isinstance(renamed.get("learning_rate"), int):
        # Keras takes floats only, and JSON has 1 for 1.0.
        renamed["learning_rate"] = float(renamed["learning_rate"])
    return renamed


def optimizer_problems(name, params, make=True):
    """What keeps an optimizer of this name and arguments from being made, a list of strings.

    Args:
        name: String.
        params: Dict, arguments of the optimizer.
        make: Whether to make it, too, which loads TensorFlow.
    """
    rule = signatures.optimizer(name)
    if rule is None:
        known = signatures.names()
        return [f"type {shown(name)} is unknown.{nearest(name, known)} Known: {', '.join(known)}."]
    try:
        words = keras_arguments(params)
    except (ValueError, OverflowError) as error:
        return [str(error)]
    if set(words) - set(rule.arguments):
        # The installed Keras may be newer, and know more.
        rule = signatures.signature_of(signatures.installed_class(name))
    problems = [
        *_unknown(rule, words, [*table.ARGUMENT_NAMES]),
        *_of_wrong_kind(rule, params, table.ARGUMENT_NAMES),
    ]
    if problems or not make:
        return problems
    return _not_made(lambda: signatures.installed_class(name)(**words))


def scheduler_problems(name, params, make=True):
    """What keeps a schedule of this name and arguments from being made, a list of strings.

    Args:
        name: String, one of `signatures.schedules()`.
        params: Dict, arguments of the schedule.
        make: Whether to make it, too, which loads TensorFlow.
    """
    rule = signatures.schedules()[name]
    problems = [*_unknown(rule, params), *_of_wrong_kind(rule, params)]
    missing = [
        argument
        for argument, default in rule.arguments.items()
        if default is signatures.REQUIRED and argument not in {*params, "learning_rate"}
    ]
    if missing:
        problems.append(f"params needs {', '.join(missing)} for {name}.")
    if problems or not make:
        return problems
    return _not_made(lambda: make_schedule(name, params, 0.1))


def _not_made(make):
    try:
        make()
    except (TypeError, ValueError, OverflowError) as error:
        return [f"params: {error}"]
    return []


def make_schedule(name, params, learning_rate):
    """The schedule of a name; `learning_rate` is the optimizer's."""
    from gsnr_tf.schedules import DEEPSPEED

    return DEEPSPEED[name](**schedule_arguments(name, params, learning_rate))


def schedule_arguments(name, params, learning_rate):
    """What `make_schedule` passes on: `params`, and the optimizer's rate where a schedule of
    DeepSpeed takes it for its peak."""
    if "learning_rate" in signatures.schedules()[name].arguments:
        return {"learning_rate": learning_rate, **params}
    if params.get("warmup_max_lr", 0 if name != "WarmupLR" else None) is None:
        return {**params, "warmup_max_lr": learning_rate}
    return params


def _unknown(rule, params, more=()):
    known = sorted(set(rule.arguments) - set(_ELSEWHERE))
    for key in params:
        if key in known:
            continue
        if key in _ELSEWHERE:
            yield f"params.{key}: {_ELSEWHERE[key]}."
        else:
            yield (
                f"params.{printable(key)} is unknown.{nearest(key, [*known, *more])} "
                f"{rule.name} takes: {', '.join(known)}."
            )


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _of_wrong_kind(rule, params, other_names=None):
    """Says of what is not a number, or not true or false, that it must be."""
    defaults = rule.arguments
    for key, value in params.items():
        name = (other_names or {}).get(key, key)
        if name not in defaults or (value is None and defaults[name] is None):
            continue
        if rule.gsnr and name in ("l2", "weight_decay") and isinstance(value, dict):
            # By pattern; the optimizer says what is wrong with it.
            continue
        if name == "warmup_max_lr" and value is None:
            # The optimizer's rate.
            continue
        default = defaults[name]
        needed = default is signatures.REQUIRED
        if isinstance(default, bool):
            kind, fits = "true or false", isinstance(value, bool)
        elif needed or name in _NUMBERS or _is_number(default):
            kind, fits = "a number", _is_number(value)
        else:
            continue
        if not fits:
            yield f"params.{key} must be {kind}. Received: {shown(value)}"
        elif kind == "a number":
            yield from _unusable_number(key, name, value)


def _unusable_number(key, name, value):
    """Says of a number that no rule and no schedule can use it."""
    if not abs(value) < _LARGEST:
        yield f"params.{key} must be a finite number. Received: {shown(value)}"
    elif value < 0 and name not in _MAY_BE_NEGATIVE:
        yield f"params.{key} must not be negative. Received: {shown(value)}"
    elif name in _WHOLE and value != int(value):
        yield f"params.{key} must be a whole number. Received: {shown(value)}"


def contradictions(config):
    """Where sections of the configuration contradict each other, a list of strings."""
    rule, params = config.rule, config.optimizer.params
    problems = []
    for key in ("gamma", "ceiling", "estimator", "monitor_interval", "batch_ramp"):
        if getattr(config.gsnr, key) is None:
            continue
        if not rule.gsnr:
            problems.append(
                f"gsnr.{key} needs an optimizer of the GSNR family. Received: {rule.name}."
            )
        elif key in params:
            problems.append(f"gsnr.{key} is also in optimizer.params; leave one out.")
    zero = config.zero_optimization
    needs = {
        "zero_optimization.stage": zero.stage,
        "zero_optimization.reduce_bucket_size": zero.reduce_bucket_size,
        "communication_data_type": config.communication_data_type,
    }
    problems += [
        f"{key}={value!r} needs an optimizer of the GSNR family. Received: {rule.name}. Take"
        f" one of {', '.join(registry.BY_OPTIMIZER)} with gsnr.gamma 1 and gsnr.ceiling 1,"
        f" which are the plain rules, or leave {key} out."
        for key, value in needs.items()
        if value and not rule.gsnr
    ]
    if config.gradient_clipping and {"clipnorm", "clipvalue"} & set(params):
        problems.append(
            "gradient_clipping excludes clipnorm and clipvalue in optimizer.params; keep one."
        )
    return problems + _of_ramp(config)


def _of_ramp(config):
    ramp, interval = config.gsnr.batch_ramp, config.gsnr.monitor_interval
    if ramp is None or not (ramp.every and interval and ramp.every != interval):
        return []
    return [
        "gsnr.batch_ramp looks at what gsnr.monitor_interval records. Received:"
        f" every={ramp.every} and monitor_interval={interval}. Leave `every` out."
    ]
