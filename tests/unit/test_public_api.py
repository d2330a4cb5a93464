"""What users call, as it was reviewed: a change here is a change for them.

    python -m tests.unit.test_public_api

writes public_api.txt anew, for the review.
"""

import argparse
import importlib
import inspect
import re
from pathlib import Path

import keras

FILE = Path(__file__).with_name("public_api.txt")
# Packages whose `__all__` is for users.
PUBLIC = ("gsnr_tf", "gsnr_tf.callbacks", "gsnr_tf.compare", "gsnr_tf.engine")


def api():
    """Lines that say what there is to call, and how."""
    for package in PUBLIC:
        yield f"{package}"
        module = importlib.import_module(package)
        for name in sorted(module.__all__):
            yield from described(name, getattr(module, name))
        yield ""
    yield "gsnr-tf"
    yield from options(cli_parser(), "")


def described(name, value):
    """A line for a function, several for a class: its constructor and public methods.

    Methods of what Keras calls (optimizers, callbacks) are not for users.
    """
    if inspect.ismodule(value):
        yield f"  {name}: module"
    elif not callable(value):
        yield f"  {name} = {value!r}"
    elif not inspect.isclass(value):
        yield f"  {name}{signature(value)}"
    else:
        yield f"  {name}{signature(value)}"
        if issubclass(value, (keras.optimizers.Optimizer, keras.callbacks.Callback)):
            return
        for attribute, member in sorted(inspect.getmembers(value)):
            ours = getattr(member, "__module__", None) or ""
            if attribute.startswith("_") or not ours.startswith("gsnr_tf"):
                continue
            if inspect.isfunction(member) or inspect.ismethod(member):
                yield f"    .{attribute}{signature(member)}"


def signature(value):
    if hasattr(value, "model_fields"):
        return "(...)"  # the configuration has pages of its own
    try:
        text = str(inspect.signature(value))
    except (TypeError, ValueError):
        return "(...)"
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def cli_parser():
    from gsnr_tf import cli

    return cli.parser()


def options(parser, command):
    """A line for each command, with its options and their defaults."""
    words = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from options(inner, f"{command} {name}")
        elif not isinstance(action, argparse._HelpAction):
            word = "/".join(action.option_strings) or (action.metavar or action.dest).upper()
            words.append(f"{word}={action.default}" if action.default is not None else word)
    if words and command:
        yield f"  gsnr-tf{command}: {', '.join(words)}"


def test_the_public_api_is_the_one_that_was_reviewed():
    now = "\n".join(api()) + "\n"
    assert now == FILE.read_text(encoding="utf-8"), (
        "If this change is meant: python -m tests.unit.test_public_api, and CHANGELOG.md"
    )


if __name__ == "__main__":
    FILE.write_text("\n".join(api()) + "\n", encoding="utf-8")
