"""From a file or a dict to a checked `Config`."""

import json
import os
from pathlib import Path

import pydantic

from gsnr_tf.engine import deepspeed
from gsnr_tf.engine.config import Config
from gsnr_tf.engine.errors import ConfigError, nearest
from gsnr_tf.engine.tune_trial import merged


def read(source, *, changes=None, make=True):
    """The `Config` of a JSON file or a dict.

    Args:
        source: Path of a JSON file, or a dict of the same keys.
        changes: Dict, what is to be otherwise than in `source`; see `trial.merged`.
        make: Whether to make optimizer and schedule, too, to see whether they take the
            values of their arguments. That loads TensorFlow.

    Raises:
        ConfigError: It cannot be read, is not JSON, or has unknown keys or wrong
        values.
            The message names all of them.
    """
    name, raw = "The configuration", source
    if isinstance(source, Config):
        if not changes:
            return source
        raw = source.model_dump(exclude_unset=True)
    elif isinstance(source, (str, os.PathLike)):
        name, raw = str(source), _parsed(Path(source))
    if not isinstance(raw, dict):
        raise ConfigError(f"{name} must be a JSON object or a dict. Received: {raw!r}")
    try:
        return Config.model_validate(merged(raw, changes or {}), context={"make": make})
    except pydantic.ValidationError as error:
        lines = [_line(one) for one in error.errors()]
        raise ConfigError("\n  ".join([f"{name} cannot be used:", *lines])) from None


def _parsed(path):
    try:
        # Some editors begin a file with a byte order mark.
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error}.") from error

    def unique(pairs):
        keys = [key for key, _ in pairs]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise ConfigError(f"{path} has {', '.join(map(repr, sorted(twice)))} twice.")
        return dict(pairs)

    def refuse(constant):
        raise ConfigError(f"{path} has {constant}, which is not JSON. Write a number.")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except json.JSONDecodeError as error:
        line = (text.splitlines() or [""])[min(error.lineno, text.count("\n") + 1) - 1]
        raise ConfigError(
            f"{path} is not JSON: {error.msg} at line {error.lineno}, column"
            f" {error.colno}:\n  {line}\n  {' ' * (error.colno - 1)}^"
        ) from error


def _line(error):
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{path}: {_unknown(error['loc'], path)}"
    value = error["input"]
    try:
        advice = deepspeed.UNSUPPORTED_VALUES.get((path, value))
    except TypeError:
        advice = None
    if advice:
        return f"{path}: {value!r} of DeepSpeed is not supported: {advice}."
    if value == "auto":
        return f"{path}: 'auto' is not filled in by anyone here. Write the value."
    if error["type"] == "missing":
        return f"{path}: this section or key is needed."
    if error["type"] == "model_type":
        keys = ", ".join(_section_at(error["loc"]).model_fields)
        return f"{path}: must be an object of the keys {keys}. Received: {value!r}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path}: {message}. Received: {value!r}"


def _unknown(location, path):
    advice = deepspeed.advice(path)
    if advice:
        return f"this key of DeepSpeed is not supported: {advice}."
    known = _section_at(location[:-1]).model_fields
    hint = nearest(location[-1], known)
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
