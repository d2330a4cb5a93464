"""What was made of a configuration's keys that are not the engine's, in words."""

import logging

from gsnr_tf.engine.deepspeed import table

_log = logging.getLogger("gsnr_tf")
_HEADINGS = (
    table.NEEDED,
    table.Kind.OTHER_ROUNDING.value,
    table.DEFAULT,
    table.AUTO,
    table.Kind.NO_EFFECT.value,
)


def grouped(decisions):
    """Pairs of a heading and its `Decision`s, a list, in the order of their weight."""
    for heading in _HEADINGS:
        found = list(dict.fromkeys(one for one in decisions if one.heading == heading))
        if found:
            yield heading, found


def tell_decisions(config):
    """One notice of what was decided, by Python's logging, as a job starts."""
    lines = []
    for heading, found in grouped(config.decisions):
        if heading == table.Kind.NO_EFFECT.value:
            # Keys alone: `gsnr-tf config check` says why.
            lines.append(f"{heading}: {', '.join(one.key for one in found)}")
        else:
            lines += [f"{heading}: {one.key}: {one.text}" for one in found]
    if lines:
        _log.warning("Of the configuration:\n  %s", "\n  ".join(lines))
