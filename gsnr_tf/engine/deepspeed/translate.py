"""From a file as DeepSpeed reads it to the keys of `config.py`, with a word on each decision."""

import math
from typing import NamedTuple

from gsnr_tf.engine import signatures
from gsnr_tf.engine.deepspeed import auto, table
from gsnr_tf.engine.deepspeed.table import Decision, Kind
from gsnr_tf.engine.errors import printable, shown


class Translation(NamedTuple):
    """A configuration in the keys of `config.py`.

    Attributes:
        values: Dict, nested.
        decisions: List of `Decision`.
        problems: List of pairs of a dotted path and what is wrong with it.
    """

    values: dict
    decisions: list
    problems: list


def translate(raw, given=None, *, rule=None, strict=False, needed=True):
    """The `Translation` of a configuration.

    Args:
        raw: Dict, nested, as it was read.
        given: Dict of values for what is "auto" or missing, by dotted path or by the
            last name of it.
        rule: The `Signature` of an optimizer that takes the place of the configuration's.
        strict: Whether to refuse what has no effect, or runs another way.
        needed: Whether what only the caller can know is a problem where it is not given.
            If not, it gets a value with which everything else can be checked.
    """
    work = _Work(strict)
    values = _spelled(raw, work)
    if rule is not None and "optimizer" in values:
        work.tell(Kind.NO_EFFECT.value, "optimizer", f"initialize has {rule.name}")
        del values["optimizer"]
    values = _kept(values, work, "")
    values = auto.filled(values, given or {}, work, needed)
    own = rule is None
    rule = rule or _optimizer(values, work)
    _scheduler(values, rule, own, work)
    _zero(values, rule, work)
    _clipping(values, rule, own, work)
    return Translation(values, work.decisions, work.problems)


class _Work:
    """Decisions and problems as they are found."""

    def __init__(self, strict):
        self.strict = strict
        self.decisions = []
        self.problems = []

    def tell(self, heading, key, text):
        self.decisions.append(Decision(heading, key, text))

    def refuse(self, key, text):
        self.problems.append((key, text))

    def judge(self, key, row, value):
        """Takes a value that this engine has no key for, as its row of the table says."""
        off = row.off(value)
        if row.kind is Kind.REFUSED and not off:
            self.refuse(key, f"this key of DeepSpeed is not supported: {row.why}.")
        elif self.strict:
            self.refuse(key, f"this key of DeepSpeed is not supported: {row.why}; leave it out.")
        elif off:
            self.tell(Kind.NO_EFFECT.value, key, "is switched off, or DeepSpeed's default")
        else:
            self.tell(row.kind.value, key, row.why)


# Spellings of DeepSpeed's for the types in which gradients travel.
_WIRE = {"fp32": "fp32", "fp16": "fp16", "bf16": "bfp16", "bfp16": "bfp16"}


def _spelled(raw, work):
    """A copy with one spelling for what DeepSpeed writes in several."""
    values = dict(raw)
    if "bfloat16" in values:
        if "bf16" in values:
            work.refuse("bfloat16", "this section is also there as `bf16`; leave one out.")
        values.setdefault("bf16", values.pop("bfloat16"))
        values.pop("bfloat16", None)
    zero = values.get("zero_optimization")
    if isinstance(zero, bool):
        values["zero_optimization"] = {"stage": int(zero)}
    wire = values.get("communication_data_type")
    if isinstance(wire, str):
        values["communication_data_type"] = _WIRE.get(wire.lower(), wire)
    for name in ("fp16", "bf16"):
        section = values.get(name)
        enabled = section.get("enabled") if isinstance(section, dict) else None
        if isinstance(enabled, str) and enabled.lower() in ("true", "false"):
            values[name] = {**section, "enabled": enabled.lower() == "true"}
    if values.get("steps_per_print") == math.inf:
        values["steps_per_print"] = None
    if values.get("optimizer") == {} or _is_empty_type(values.get("optimizer")):
        del values["optimizer"]
    if _is_empty_type(values.get("scheduler")):
        del values["scheduler"]
    return values


def _is_empty_type(section):
    return isinstance(section, dict) and "type" in section and section["type"] is None


def _kept(values, work, prefix):
    """A copy without the keys that the table knows, which are judged."""
    kept = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        row = table.row(path) if isinstance(key, str) else None
        if row is not None:
            work.judge(path, row, value)
        elif isinstance(key, str) and key.startswith(("_", "#", "//")) and not work.strict:
            work.tell(Kind.NO_EFFECT.value, printable(path), "is a comment")
        elif isinstance(value, dict) and prefix.count(".") < 1 and not path.startswith("gsnr"):
            kept[key] = _kept(value, work, f"{path}.")
        else:
            kept[key] = value
    return kept


def _optimizer(values, work):
    """Judges the section; returns the `Signature` of the optimizer, `None` if it is unknown."""
    section = values.get("optimizer")
    if section is None:
        section = values["optimizer"] = {"type": "AdamW"}
        work.tell(
            table.DEFAULT,
            "optimizer",
            "AdamW with a learning rate of 0.001; initialize(optimizer=…) takes another",
        )
    name = section.get("type") if isinstance(section, dict) else None
    if not isinstance(name, str):
        return None
    advice = table.refused_optimizer(name)
    if advice:
        work.refuse("optimizer.type", f"{shown(name)} of DeepSpeed is not supported: {advice}.")
        # Its arguments are those of the other one.
        section["type"], section["params"] = "AdamW", {}
        return None
    rule = signatures.optimizer(name)
    params = section.get("params", {})
    if rule is not None and isinstance(params, dict):
        kept = _of_params(params, rule, table.ARGUMENT_NAMES, _rows(rule), "optimizer", work)
        values["optimizer"] = {**section, "params": kept}
        if rule.deepspeed:
            values["optimizer"]["params"] = _of_deepspeed(name.lower(), params, kept, work)
    return rule


def _rows(rule):
    if rule.deepspeed:
        return {**table.OPTIMIZER_PARAMS, "torch_adam": table.DEEPSPEED_PARAMS["torch_adam"]}
    return {**table.OPTIMIZER_PARAMS, **table.DEEPSPEED_PARAMS}


def _of_params(params, rule, other_names, rows, section, work):
    """A copy of arguments without those that a table knows and the class does not."""
    kept = {}
    for key, value in params.items():
        known = other_names.get(key, key) in rule.arguments or key == "betas"
        if not known and key in rows:
            work.judge(f"{section}.params.{key}", rows[key], value)
        else:
            kept[key] = value
    return kept


def _of_deepspeed(name, params, kept, work):
    """`kept` with what DeepSpeed's name for an optimizer decides."""
    kept = dict(kept)
    if name in table.ONE_BIT:
        work.tell(Kind.OTHER_ROUNDING.value, "optimizer.type", table.OPTIMIZERS[name][1])
        if "bias_correction" in kept:
            work.tell(
                Kind.NO_EFFECT.value,
                "optimizer.params.bias_correction",
                "DeepSpeed does not read it for 1-bit optimizers",
            )
        kept["bias_correction"] = False
    if name == "adamw" and kept.get("adam_w_mode") is False:
        work.tell(
            Kind.NO_EFFECT.value,
            "optimizer.params.adam_w_mode",
            "the name AdamW decides, as in DeepSpeed",
        )
        kept["adam_w_mode"] = True
    decoupled = kept.get("adam_w_mode", True)
    if params.get("torch_adam") is True and decoupled and "weight_decay" not in kept:
        kept["weight_decay"] = 0.01
        work.tell(table.DEFAULT, "optimizer.params.weight_decay", "0.01, that of torch's AdamW")
    return kept


def _scheduler(values, rule, own, work):
    """Judges the section."""
    section = values.get("scheduler")
    if not isinstance(section, dict) or not isinstance(section.get("type"), str):
        return
    schedule = signatures.schedules().get(section["type"])
    params = section.get("params", {})
    if schedule is None or not isinstance(params, dict):
        return
    rows = table.SCHEDULER_PARAMS
    kept = _of_params(params, schedule, {}, rows, "scheduler", work)
    cycles = section["type"] == "OneCycle" and kept.pop("cycle_momentum", True) is not False
    if cycles and rule is not None and rule.deepspeed and "beta_1" in rule.arguments:
        work.refuse("scheduler.params.cycle_momentum", table.CYCLES_MOMENTUM)
    values["scheduler"] = {**section, "params": kept}


def _zero(values, rule, work):
    """Stage 3 as stage 2; what concerns optimizers that divide their state, and others."""
    section = values.get("zero_optimization")
    section = dict(section) if isinstance(section, dict) else {}
    divides = rule is not None and rule.gsnr
    if section.get("stage") == 3:
        section["stage"], path = 2, "zero_optimization.stage"
        if work.strict:
            work.refuse(path, f"3 of DeepSpeed is not supported: {table.STAGE_3}.")
        else:
            how = table.STAGE_3 if divides else table.STAGE_3_WHOLE
            work.tell(Kind.OTHER_ROUNDING.value, path, f"3: {how}")
    if isinstance(section.get("stage"), float) and section["stage"] in (0, 1, 2):
        section["stage"] = int(section["stage"])
    if rule is not None and not divides and not work.strict:
        _whole(section, values, work)
    if section or ("zero_optimization" in values and isinstance(values["zero_optimization"], dict)):
        values["zero_optimization"] = section


def _whole(section, values, work):
    """Takes out what only optimizers that divide their state can do."""
    path = "zero_optimization.stage"
    if section.get("stage") in (1, 2) and type(section["stage"]) is int:
        del section["stage"]
        if not any(decision.key == path for decision in work.decisions):
            work.tell(Kind.NO_EFFECT.value, path, table.STATE_KEPT_WHOLE)
    bucket = section.get("reduce_bucket_size")
    if type(bucket) in (int, float) and bucket >= 0:
        del section["reduce_bucket_size"]
        work.tell(Kind.NO_EFFECT.value, "zero_optimization.reduce_bucket_size", table.SPEED)
    wire = values.get("communication_data_type")
    if wire in ("fp32", "fp16", "bfp16"):
        del values["communication_data_type"]
        if wire != "fp32":
            work.tell(
                Kind.OTHER_ROUNDING.value,
                "communication_data_type",
                "gradients travel as float32; only the GSNR family has a choice",
            )


def _clipping(values, rule, own, work):
    """DeepSpeed's default where the optimizer is one of DeepSpeed's."""
    if values.get("gradient_clipping") is not None or rule is None or not rule.deepspeed:
        return
    params = values["optimizer"].get("params", {}) if own else {}
    if not isinstance(params, dict) or {"clipnorm", "clipvalue"} & set(params):
        return
    values["gradient_clipping"] = table.GRADIENT_CLIPPING
    work.tell(
        table.DEFAULT,
        "gradient_clipping",
        f"{table.GRADIENT_CLIPPING:g}, since June 2026; before it was 0, which does not clip",
    )
