"""What "auto" stands for, as Hugging Face's Trainer fills it in for DeepSpeed."""

from typing import NamedTuple

from gsnr_tf.engine.deepspeed import table
from gsnr_tf.engine.errors import nearest, shown

AUTO = "auto"
_SIZES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


class Open(NamedTuple):
    """A key that may be left open.

    Attributes:
        value: What it stands for; `LEAVE_OUT`: what this engine does by itself; or
            `ASK`: only the caller knows.
        text: Where the value comes from.
        example: Value with which everything else is checked where nobody has said it.
    """

    value: object
    text: str
    example: object = None


LEAVE_OUT, ASK = object(), object()

_TRAINER = "the default of Hugging Face's Trainer"
OPEN = {
    "train_batch_size": Open(LEAVE_OUT, "follows from the other sizes"),
    "train_micro_batch_size_per_gpu": Open(ASK, "examples that one rank computes at once", 8),
    "gradient_accumulation_steps": Open(LEAVE_OUT, "follows from the other sizes, else 1"),
    "gradient_clipping": Open(1.0, _TRAINER),
    "optimizer.params.lr": Open(ASK, "the learning rate", 5e-5),
    "optimizer.params.learning_rate": Open(ASK, "the learning rate", 5e-5),
    "optimizer.params.betas": Open([0.9, 0.999], _TRAINER),
    "optimizer.params.eps": Open(1e-8, _TRAINER),
    "optimizer.params.weight_decay": Open(0.0, _TRAINER),
    "scheduler.params.warmup_min_lr": Open(0.0, _TRAINER),
    "scheduler.params.warmup_max_lr": Open(None, "the optimizer's learning rate"),
    "scheduler.params.warmup_num_steps": Open(ASK, "updates of the warm-up", 100),
    "scheduler.params.total_num_steps": Open(ASK, "updates of the whole training", 1000),
    "fp16.enabled": Open(LEAVE_OUT, "false, unless the model has layers of mixed_float16"),
    "bf16.enabled": Open(LEAVE_OUT, "false, unless the model has layers of mixed_bfloat16"),
    **{
        f"fp16.{key}": Open(LEAVE_OUT, "DeepSpeed's default")
        for key in ("loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis",
                    "min_loss_scale")
    },
    "zero_optimization.reduce_bucket_size": Open(LEAVE_OUT, "chosen from the model"),
}  # fmt: skip


def filled(values, given, work, needed):
    """A copy of `values` in which nothing is "auto" any more.

    Args:
        values: Dict, nested.
        given: Dict of what the caller says, by dotted path or its last name.
        work: Takes decisions and problems.
        needed: Whether what nobody says is a problem; if not, an example takes its place.
    """
    given = _by_path(given, work)
    values = _sized(values, given)
    return _walked(values, given, work, needed, "")


def _by_path(given, work):
    """`given` by dotted path."""
    found, last = {}, {path.rsplit(".", 1)[-1]: path for path in OPEN}
    last["learning_rate"] = "optimizer.params.lr"
    for name, value in given.items():
        path = name if name in OPEN else last.get(name)
        if path is None:
            work.refuse(
                f"auto[{shown(name)}]", f"no such key can be left open.{nearest(str(name), last)}"
            )
        else:
            found["optimizer.params.lr" if path.endswith(".learning_rate") else path] = value
    return found


def _sized(values, given):
    """Sizes that are missing altogether are left open, too, where another says nothing."""
    values = dict(values)
    for name in _SIZES:
        if name in given and values.get(name) is None:
            values[name] = AUTO
    known = [values.get(name) not in (None, AUTO) or name in given for name in _SIZES[:2]]
    if not any(known):
        values["train_micro_batch_size_per_gpu"] = AUTO
    elif values.get(_SIZES[1]) == AUTO and _SIZES[1] not in given:
        # The batch of all ranks is known, and this follows from it.
        del values[_SIZES[1]]
    return values


def _walked(values, given, work, needed, prefix):
    found = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            found[key] = _walked(value, given, work, needed, f"{path}.")
            continue
        said = given.get(path.replace(".learning_rate", ".lr"), AUTO)
        if value != AUTO:
            found[key] = value
            # Whether to compute in fewer bits is also said by the model, and the file holds.
            differs = said != AUTO and said != value and not path.endswith(".enabled")
            if differs and value is not None:
                work.refuse(path, f"is {shown(value)}, and auto has {shown(said)}; leave one out.")
            continue
        _fill(found, key, path, said, work, needed)
    return found


def _fill(found, key, path, said, work, needed):
    entry = OPEN.get(path)
    if entry is None:
        # Of a key that is not known, the reader says so.
        found[key] = AUTO
    elif said != AUTO:
        found[key] = said
        work.tell(table.AUTO, path, f"{shown(said)}, as auto has it")
    elif entry.value is LEAVE_OUT:
        work.tell(table.AUTO, path, entry.text)
    elif entry.value is ASK:
        name = path.rsplit(".", 1)[-1]
        found[key] = entry.example
        if needed:
            work.refuse(
                path,
                f"{entry.text}, which nobody has said. Write the value, or give"
                f" initialize(auto={{{name!r}: …}}), for `gsnr-tf config check` --auto {name}=….",
            )
        else:
            work.tell(table.NEEDED, path, f"{entry.text}; checked with {entry.example}")
    else:
        found[key] = entry.value
        value = "" if entry.value is None else f"{entry.value}, "
        work.tell(table.AUTO, path, f"{value}{entry.text}")
