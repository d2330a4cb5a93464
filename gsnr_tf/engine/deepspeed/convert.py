"""A file of DeepSpeed's, written anew as it runs here."""

import json

from gsnr_tf.engine.deepspeed import table
from gsnr_tf.engine.load import read
from gsnr_tf.engine.notices import grouped


def converted(path, *, auto=None, strict=False):
    """The text of a configuration: a comment for each decision, then JSON.

    Both `read` and DeepSpeed's own reader take the comments. What only the caller of
    `initialize` can say stays "auto".

    Args:
        path: Path of the file.
        auto: As for `read`.
        strict: As for `read`.

    Raises:
        ConfigError: It cannot be used.
    """
    config = read(path, make=False, auto=auto, strict=strict, needed=False)
    values = config.model_dump(exclude_unset=True, mode="json")
    lines = []
    for heading, found in grouped(config.decisions):
        lines.append(f"// {heading}:")
        lines += [f"//   {one.key}: {one.text}" for one in found]
        if heading == table.NEEDED:
            for one in found:
                _leave_open(values, one.key.split("."))
    return "\n".join([*lines, json.dumps(values, indent=2, ensure_ascii=False)])


def _leave_open(values, path):
    *sections, last = path
    for name in sections:
        values = values.setdefault(name, {})
    values[last] = "auto"
