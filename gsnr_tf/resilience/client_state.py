"""The user's own values in a checkpoint: what comes back is what was given."""

import math
import numbers

import numpy as np

from gsnr_tf.resilience.checkpoint_files import CheckpointError

# Python reads no integer of more than 4300 digits.
_TOO_LONG = 10**4000


def plain(value, path="client_state"):
    """The same in Python's own types, which JSON gives back as they are.

    Args:
        value: Dict with strings as keys, list, string, number, bool or `None`, nested
            at will. Scalars of NumPy become Python's.
        path: String, where `value` stands, for errors.

    Raises:
        CheckpointError: JSON could not hold a value, or would change it.
    """
    try:
        return _plain(value, path)
    except RecursionError:
        raise CheckpointError(f"{path} is nested too deeply, or contains itself.") from None


def _plain(value, path):
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, str):
        return value
    if type(value) is int and abs(value) < _TOO_LONG:
        return value
    if type(value) is float:
        if math.isfinite(value):
            return value
        raise _refused(path, value, "JSON has no such number; store None or a string")
    if type(value) is list:
        return [_plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if type(key) is not str:
                raise _refused(path, key, "keys must be strings: use str(key)", "the key ")
        return {key: _plain(item, f"{path}[{key!r}]") for key, item in value.items()}
    raise _refused(path, value, _way_out(value))


def _way_out(value):
    if isinstance(value, (tuple, set, frozenset)):
        return "it would come back as a list: use list(value)"
    if isinstance(value, int):
        return "use int(value)" if abs(value) < _TOO_LONG else "it has too many digits"
    if isinstance(value, np.ndarray):
        return "use value.tolist(), or save it with numpy.save"
    if hasattr(value, "numpy") or isinstance(value, numbers.Number):
        return "use float(value), or a list of floats"
    return "JSON holds dicts, lists, strings, numbers, booleans and None"


def _refused(path, value, why, what=""):
    try:
        shown = repr(value)
    except ValueError:
        # Python refuses to print long integers.
        shown = "a value"
    shown = shown if len(shown) <= 100 else f"{shown[:100]}…"
    return CheckpointError(
        "client_state must be what JSON can hold and gives back unchanged. Received:"
        f" {what}{shown} of type {type(value).__name__} at {path}; {why}."
    )
