"""What is wrong with a configuration, as people should read it."""

import difflib
import reprlib

_LINES, _WIDTH = 40, 400

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 60
_repr.maxdict = _repr.maxlist = _repr.maxtuple = 4
_repr.maxlevel = 3


class ConfigError(ValueError):
    """The configuration cannot be used; the message names each key and what to do."""


def shown(value):
    """`repr` of a value from outside: short, and of characters that any terminal has."""
    try:
        text = _repr.repr(value)
    except ValueError:
        # An integer of more digits than Python writes.
        text = f"<{type(value).__name__} that is too long>"
    return printable(text)


def printable(text):
    """A text without lone surrogates and control characters, which no terminal can show."""
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def on_one_screen(lines):
    """Lines of a message, one string: at most a screen of them."""
    lines = [printable(line) for line in lines]
    lines = [line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…" for line in lines]
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], f"… and {len(lines) - _LINES + 1} more"]
    return "\n  ".join(lines)


def nearest(word, known):
    """` Did you mean 'x'?` for a word close to one that is known, else an empty string.

    Upper and lower case do not matter.
    """
    spelled = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word[:100].lower(), spelled, n=1, cutoff=0.6)
    return f" Did you mean {spelled[close[0]]!r}?" if close else ""
