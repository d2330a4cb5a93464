"""The reference pages of the configuration, from the configuration itself.

`gsnr-tf config docs` writes them; a test compares.
"""

import inspect
import json
from pathlib import Path

from gsnr_tf.engine.config import Config
from gsnr_tf.engine.deepspeed import auto, table
from gsnr_tf.engine.deepspeed.optimizers import CLASSES
from gsnr_tf.engine.deepspeed.table import Kind
from gsnr_tf.engine.load import section_of

FOLDER = Path(__file__).with_name("docs")
_MARK = "<!-- Written by `gsnr-tf config docs` from gsnr_tf/engine; do not edit. -->"


def pages():
    """Texts of the pages by file name."""
    found = {"job.md": _job(dict(sections(Config)))}
    for name, section in sections(Config):
        found[f"{name}.md"] = _section(name, section)
    found["scheduler.md"] += _schedules()
    found["deepspeed.md"] = _deepspeed()
    return found


def sections(of, prefix=""):
    """Pairs of dotted name and class of the sections of a section, at every depth."""
    for name, field in of.model_fields.items():
        section = section_of(field)
        if section:
            yield prefix + name, section
            yield from sections(section, f"{prefix}{name}.")


def write():
    """Writes the pages into `FOLDER`; returns their paths."""
    written = []
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        written.append(FOLDER / name)
    return written


def _job(named):
    keys = [name for name in Config.model_fields if name not in named]
    example = {
        "train_batch_size": 4096,
        "train_micro_batch_size_per_gpu": 512,
        "optimizer": _example(named["optimizer"]),
    }
    links = [f"- [`{name}`]({name}.md): {_first(s)}" for name, s in named.items()]
    more = "- [DeepSpeed's other keys](deepspeed.md)"
    return _page(
        "Keys of the job",
        Config,
        _table(Config, keys),
        "Sections, each with its page:\n\n" + "\n".join([*links, more]),
        _code(example),
    )


def _section(name, section):
    inner = {key: section_of(field) for key, field in section.model_fields.items()}
    parts = [_table(section, [key for key, found in inner.items() if not found])]
    links = [f"[`{key}`]({name}.{key}.md)" for key, found in inner.items() if found]
    if links:
        parts.append(f"Sections of it, each with its page: {', '.join(links)}.")
    example = _example(section)
    for key in reversed(name.split(".")):
        example = {key: example}
    return _page(f"`{name}`", section, *parts, _code(example))


def _schedules():
    """What each schedule says of itself."""
    from gsnr_tf.schedules import DEEPSPEED as SCHEDULES

    return "".join(
        f"\n## {name}\n\n```text\n{inspect.getdoc(rule)}\n```\n" for name, rule in SCHEDULES.items()
    )


_CLASSES = {
    Kind.NO_EFFECT: (
        "Accepted. One notice at the start of a job lists them, and `gsnr-tf config check` says"
        " why. With `--strict` they are errors."
    ),
    Kind.OTHER_ROUNDING: (
        "Accepted, and told at the start of a job: the mathematics is the same, the order or"
        " the precision of its steps is not. With `--strict` they are errors."
    ),
    Kind.REFUSED: (
        "Errors, all of a file in one message, each with the way out. A value that only"
        " switches the key off, or repeats DeepSpeed's default, is accepted."
    ),
}


def _deepspeed():
    """The table of DeepSpeed's keys, a page."""
    rows = [
        (Kind.OTHER_ROUNDING, "`zero_optimization.stage: 3` of the GSNR family", table.STAGE_3),
        (Kind.OTHER_ROUNDING, "`zero_optimization.stage: 3` of others", table.STAGE_3_WHOLE),
        (Kind.NO_EFFECT, "`zero_optimization.stage: 1, 2` of others", table.STATE_KEPT_WHOLE),
    ]
    rows += [(row.kind, f"`{key}`", row.why) for key, row in table.KEYS.items()]
    rows += [
        (Kind.OTHER_ROUNDING, f"`optimizer.type`: {name}", how)
        for name, (_, how) in table.OPTIMIZERS.items()
        if how
    ]
    rows += [
        (Kind.REFUSED, f"`optimizer.type`: {name}", way)
        for name, way in table.REFUSED_OPTIMIZERS.items()
    ]
    for where, found in (
        ("optimizer.params", table.OPTIMIZER_PARAMS),
        ("optimizer.params` of the GSNR family and of `keras.", table.DEEPSPEED_PARAMS),
        ("scheduler.params", table.SCHEDULER_PARAMS),
    ):
        rows += [(row.kind, f"`{where}`: {name}", row.why) for name, row in found.items()]
    rows.append((Kind.REFUSED, "`scheduler.params`: cycle_momentum", table.CYCLES_MOMENTUM))
    parts = [
        "# DeepSpeed's keys",
        _MARK,
        "A key of the same meaning has a page of its own: [keys of the job](job.md). Of the"
        " others there are three classes. A key that is in neither place is unknown, an error"
        " that names the nearest.",
    ]
    for kind, meaning in _CLASSES.items():
        lines = [f"| {key} | {_sentence(text)} |" for k, key, text in rows if k is kind]
        parts += [f"## {kind.value}", meaning, "\n".join(["| key | |", "|---|---|", *lines])]
    lines = [f"| `{key}` | {_open(entry)} |" for key, entry in auto.OPEN.items()]
    parts += [
        f"## {table.AUTO}",
        "What only the caller knows is given to `initialize(auto={name: value})`, and to"
        " `gsnr-tf config check --auto name=value`.",
        "\n".join(["| key | stands for |", "|---|---|", *lines]),
        f"## {table.DEFAULT}",
        "With an optimizer of DeepSpeed's name the rules and their defaults are DeepSpeed's,"
        f" as is `gradient_clipping`, which is {table.GRADIENT_CLIPPING:g} where it is not"
        " given (since June 2026; it was 0 before).",
        *(f"### {name}\n\n```text\n{inspect.getdoc(rule)}\n```" for name, rule in CLASSES.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _open(entry):
    if entry.value is auto.ASK:
        return f"{_sentence(entry.text)[:-1]}: must be given."
    if entry.value in (auto.LEAVE_OUT, None):
        return _sentence(entry.text)
    return f"{entry.value}, {entry.text}."


def _page(title, section, *parts):
    text = "\n".join(line.strip() for line in inspect.getdoc(section).splitlines())
    return "\n\n".join([f"# {title}", _MARK, text, *parts]) + "\n"


def _table(section, names):
    properties = section.model_json_schema()["properties"]
    lines = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for name in names:
        field, schema = section.model_fields[name], properties[name]
        default = "needed" if field.is_required() else f"`{json.dumps(field.default)}`"
        if not field.is_required() and field.default is None:
            default = "not given"
        meaning = field.description
        lines.append(f"| `{name}` | {_values(schema)} | {default} | {meaning} |")
    return "\n".join(lines)


def _values(schema):
    """What a JSON Schema lets through, in words."""
    kinds = schema.get("anyOf", [schema])
    told = []
    for kind in kinds:
        if "enum" in kind:
            told.append(", ".join(f"`{json.dumps(v)}`" for v in kind["enum"]))
        elif kind.get("type") == "null":
            told.append("null")
        else:
            told.append(kind["type"] + _bounds(kind))
    return " or ".join(told)


def _bounds(schema):
    signs = {
        "minimum": "≥",
        "exclusiveMinimum": ">",
        "maximum": "≤",
        "exclusiveMaximum": "<",
    }
    limits = [f"{s} {schema[name]:g}" for name, s in signs.items() if name in schema]
    return f" {', '.join(limits)}" if limits else ""


def _example(section):
    values = {}
    for name, field in section.model_fields.items():
        value = field.examples[0] if field.examples else field.default
        if name == "enabled":
            value = True
        if value is not None:
            values[name] = value
    return values


def _code(example):
    return f"Example:\n\n```json\n{json.dumps(example, indent=2)}\n```"


def _first(section):
    """The first sentence of what a section says of itself, on one line."""
    paragraph = " ".join(inspect.getdoc(section).split("\n\n")[0].split())
    return paragraph.split(". ")[0].rstrip(".") + "."


def _sentence(text):
    return text[0].upper() + text[1:].removesuffix(".") + "."
