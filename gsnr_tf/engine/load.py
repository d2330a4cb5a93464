"""From a file or a dict to a checked `Config`."""

import json
import os
from pathlib import Path

import pydantic

from gsnr_tf.engine.config import Config
from gsnr_tf.engine.deepspeed import auto as auto_module
from gsnr_tf.engine.deepspeed.translate import translate
from gsnr_tf.engine.errors import ConfigError, nearest, on_one_screen, printable, shown
from gsnr_tf.engine.tune_trial import merged

# Of a file that is not plain JSON; those of people have some dozens.
_MOST_BRACKETS = 500
_MOST_BITS = 128


def read(
    source, *, changes=None, make=True, auto=None, rule=None, strict=False, ranks=None, needed=True
):
    """The `Config` of a JSON file or a dict.

    Args:
        source: Path of a file of JSON, or of JSON with comments and trailing commas, as
            DeepSpeed reads it; or a dict of the same keys.
        changes: Dict, what is to be otherwise than in `source`; see `trial.merged`.
        make: Whether to make optimizer and schedule, too, to see whether they take the
            values of their arguments. That loads TensorFlow.
        auto: Dict of values for what `source` has as "auto" or leaves open, by dotted
            path or the last name of it.
        rule: The `Signature` of an optimizer that takes the place of the configuration's.
        strict: Whether keys of DeepSpeed's that have no effect, or run another way, are
            errors.
        ranks: Int, of how many ranks the sizes of the batch are to be checked, too.
        needed: Whether it is an error where a value is left open that nobody has given. If
            not, it is checked with an example.

    Raises:
        ConfigError: It cannot be read, is not JSON, or has unknown keys or wrong
            values, or such as cannot be honoured. The message names all of them.
    """
    name, raw = "The configuration", source
    before = ()
    if isinstance(source, Config):
        if not changes:
            return source
        raw, before = source.model_dump(exclude_unset=True), source.decisions
        rule = rule or source._given_rule
    elif isinstance(source, (str, os.PathLike)):
        name, raw = named(source), parsed(source)
    if not isinstance(raw, dict):
        raise ConfigError(f"{name} must be a JSON object or a dict. Received: {shown(raw)}")
    context = {"make": make, "rule": rule}
    try:
        raw = merged(raw, changes or {})
        raw, unreadable = _readable(raw)
        told = translate(raw, auto, rule=rule, strict=strict, needed=needed)
        config, found = _validated(told.values, context)
    except RecursionError:
        raise ConfigError(f"{name} is nested too deeply.") from None
    problems = [*unreadable, *told.problems, *found]
    if ranks is not None:
        try:
            config.batch(ranks)
        except ConfigError as error:
            problems.append(("", str(error)))
    if problems:
        lines = [line for path, text in problems for line in _lines(path, text)]
        lines = list(dict.fromkeys(lines))
        raise ConfigError(on_one_screen([f"{name} cannot be used:", *lines]))
    config._decisions = (*before, *told.decisions)
    return config


def _readable(values, prefix=""):
    """A copy without what no key can mean and no message can write: integers of hundreds of
    digits, text that is not Unicode, keys that are no text. And what to say of it."""
    kept, problems = {}, []
    for key, value in values.items():
        path = f"{prefix}{printable(key) if isinstance(key, str) else shown(key)}"
        parts = value if isinstance(value, (list, tuple)) else [value]
        if not isinstance(key, str) or not _is_unicode(key):
            problems.append((path, "keys must be text, of Unicode."))
        elif isinstance(value, dict):
            kept[key], found = _readable(value, f"{path}.")
            problems += found
        elif any(isinstance(v, int) and v.bit_length() > _MOST_BITS for v in parts):
            problems.append((path, f"is too large a number. Received: {shown(value)}"))
        elif any(isinstance(v, str) and not _is_unicode(v) for v in parts):
            problems.append((path, f"is not Unicode. Received: {shown(value)}"))
        else:
            kept[key] = value
    return kept, problems


def _is_unicode(text):
    """Whether it has no half of a pair of surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _validated(values, context):
    """`(config, problems)`: without the keys that are wrong the rest is looked at, too, so that
    all problems are found in one round."""
    problems = []
    while True:
        try:
            return Config.model_validate(values, context=context), problems
        except pydantic.ValidationError as error:
            found = error.errors()
        problems += [(".".join(map(str, one["loc"])), _text(one)) for one in found]
        for place in (one["loc"] for one in found):
            if place:
                values = _without(values, place)
            else:
                # Its sections contradict each other; each by itself may be used.
                context = {**context, "together": False}


def _without(values, place):
    """A copy of nested dicts without what is at a place."""
    first, rest = place[0], place[1:]
    if not isinstance(values, dict) or first not in values:
        return values
    inner = values[first]
    if rest and isinstance(inner, dict) and any(part in inner for part in rest[:1]):
        return {**values, first: _without(inner, rest)}
    return {key: value for key, value in values.items() if key != first}


def named(path):
    """A path as messages have it."""
    name = printable(str(path))
    return name if len(name) <= 200 else f"{name[:100]}…{name[-99:]}"


def parsed(path):
    """What a file of JSON holds, comments and trailing commas let through.

    Raises:
        ConfigError: It cannot be read, or is no such file.
    """
    name = named(path)
    try:
        # Some editors begin a file with a byte order mark.
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not UTF-8: {error}.") from error
    except ValueError as error:
        raise ConfigError(f"{name} is no path: {error}.") from error

    def unique(pairs):
        keys = [key for key, _ in pairs]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise ConfigError(f"{name} has {', '.join(map(shown, sorted(twice)))} twice.")
        return dict(pairs)

    def refuse(constant):
        if constant == "Infinity":
            return float("inf")
        raise ConfigError(f"{name} has {constant}, which is not JSON. Write a number.")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except json.JSONDecodeError as error:
        return _lenient(text, unique, error, name)
    except RecursionError:
        raise ConfigError(f"{name} is nested too deeply.") from None
    except ConfigError:
        raise
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{name} has a number that cannot be read: {error}.") from error


def _lenient(text, unique, error, name):
    """What the text holds as DeepSpeed reads it, by hjson; else `error`, as a `ConfigError`."""
    import hjson

    try:
        # hjson takes an empty file for an empty object, and hours for a deep one.
        if text.strip() and text.count("{") + text.count("[") < _MOST_BRACKETS:
            return hjson.loads(text, object_pairs_hook=unique)
    except ConfigError:
        raise
    except RecursionError:
        raise ConfigError(f"{name} is nested too deeply.") from None
    except (ValueError, IndexError, OverflowError):
        # Its own errors, and where a text ends in the middle of something.
        pass
    line = (text.splitlines() or [""])[min(error.lineno, text.count("\n") + 1) - 1]
    start = max(0, error.colno - 60)
    raise ConfigError(
        f"{name} is not JSON: {error.msg} at line {error.lineno}, column"
        f" {error.colno}:\n  {printable(line[start : start + 100])}"
        f"\n  {' ' * (error.colno - 1 - start)}^"
    ) from error


def _lines(path, text):
    return [f"{printable(path)}: {line}" if path else line for line in text.splitlines()]


def _text(error):
    """What is wrong at the place of an error of pydantic's."""
    if error["type"] == "extra_forbidden":
        return _unknown(error["loc"])
    value = error["input"]
    if value == auto_module.AUTO:
        return "'auto' cannot be filled in for this key. Write the value."
    if error["type"] == "missing":
        return "this section or key is needed."
    if error["type"] == "model_type":
        keys = ", ".join(_section_at(error["loc"]).model_fields)
        return f"must be an object of the keys {keys}. Received: {shown(value)}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return message
    return f"{message}. Received: {shown(value)}"


def _unknown(location):
    known = _section_at(location[:-1]).model_fields
    hint = nearest(str(location[-1]), known)
    return f"unknown key.{hint or ' Known: ' + ', '.join(known) + '.'}"


def _section_at(location):
    section = Config
    for part in location:
        section = section_of(section.model_fields[part])
    return section


def section_of(field):
    """The `Section` that a field holds, also where it may be missing; or `None`."""
    kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
            return kind
    return None


def schema():
    """JSON Schema (draft 2020-12) of the configuration, a dict."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Config.model_json_schema(),
    }
