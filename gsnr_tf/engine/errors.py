"""What is wrong with a configuration, as people should read it."""

import difflib


class ConfigError(ValueError):
    """The configuration cannot be used; the message names each key and what to do."""


def nearest(word, known):
    """` Did you mean 'x'?` for a word close to one that is known, else an empty string.

    Upper and lower case do not matter.
    """
    spelled = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), spelled, n=1, cutoff=0.6)
    return f" Did you mean {spelled[close[0]]!r}?" if close else ""
