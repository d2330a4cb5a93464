"""The reference pages of the configuration, from the configuration itself.

`gsnr-tf config docs` writes them; a test compares.
"""

import inspect
import json
from pathlib import Path

from gsnr_tf.engine import deepspeed
from gsnr_tf.engine.config import Config
from gsnr_tf.engine.load import section_of

FOLDER = Path(__file__).with_name("docs")
_MARK = "<!-- Written by `gsnr-tf config docs` from gsnr_tf/engine; do not edit. -->"


def pages():
    """Texts of the pages by file name."""
    found = {"job.md": _job(dict(sections(Config)))}
    for name, section in sections(Config):
        found[f"{name}.md"] = _section(name, section)
    found["scheduler.md"] += _schedules()
    found["unsupported.md"] = _unsupported()
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
    more = "- [DeepSpeed's keys that have no counterpart](unsupported.md)"
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


def _unsupported():
    rows = [(f"`{key}`", text) for key, text in deepspeed.UNSUPPORTED.items()]
    rows += [(f"`{key}…`", t) for key, t in deepspeed.UNSUPPORTED_PREFIXES.items()]
    rows += [(f"`{k}: {v}`", t) for (k, v), t in deepspeed.UNSUPPORTED_VALUES.items()]
    for where, table in (
        ("optimizer.type", deepspeed.OPTIMIZERS),
        ("optimizer.params", deepspeed.OPTIMIZER_PARAMS),
        ("scheduler.params", deepspeed.SCHEDULER_PARAMS),
    ):
        rows += [(f"`{where}`: {key}", text) for key, text in table.items()]
    lines = [f"| {key} | {_sentence(text)} |" for key, text in rows]
    return "\n".join(
        [
            "# DeepSpeed's keys that have no counterpart",
            "",
            _MARK,
            "",
            "Each of them is an error that says what this table says.",
            "",
            "| key | instead |",
            "|---|---|",
            *lines,
            "",
        ]
    )


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
    return text[0].upper() + text[1:] + "."
