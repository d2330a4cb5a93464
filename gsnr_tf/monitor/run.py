"""The folder of a run: what was run, and what was recorded of it."""

import json
import os
from pathlib import Path

import numpy as np

from gsnr_tf._sound_samples import SOUND_SAMPLES

INFO, EVENTS = "run.json", "events.jsonl"


def write_info(folder, info):
    """Writes `run.json`, whole or not at all.

    Args:
        folder: Directory of the run; made if it is not there.
        info: Dict that JSON knows; what it does not know is written as a string.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f"{INFO}.part"
    aside.write_text(json.dumps(info, indent=1, default=str) + "\n")
    os.replace(aside, folder / INFO)


class DamagedRun(ValueError):
    """The record of a run cannot be used as it is; the message says where it is damaged."""


# Numbers beyond this were not written by a monitor.
_LARGEST = 1e100
_UNKNOWN = {
    "model": "unknown",
    "optimizer": "unknown",
    "arguments": {},
    "variables": [],
    "workers": 1,
    "every": 1,
    "started": "unknown",
    "versions": {},
}


class Run:
    """What `GSNRMonitor` recorded of one training.

    A training that was resumed repeats some steps; what was recorded last counts. Damaged
    files are read up to the damage.

    Attributes:
        info: Dict, the content of `run.json`; what is damaged there is unknown.
        folder: `pathlib.Path`.
        damage: List of sentences, what is damaged; empty where nothing is.
        damaged_info: Whether `run.json` is.
    """

    def __init__(self, folder):
        """Reads a folder.

        Raises:
            FileNotFoundError: It holds no run.
            OSError: A file cannot be read.
        """
        self.folder = Path(folder)
        missing = [n for n in (INFO, EVENTS) if not (self.folder / n).exists()]
        if missing:
            raise FileNotFoundError(
                f"{folder} is not the folder of a run: {' and '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not there. Give `fit` the "
                "callback gsnr_tf.callbacks.GSNRMonitor(folder), and name that folder."
            )
        self.damage = []
        self.info = self._read_info()
        self.damaged_info = bool(self.damage)
        self._bins = {}
        self._records = self._read()

    def _read_info(self):
        try:
            info = json.loads((self.folder / INFO).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            self.damage.append(f"{INFO} is damaged ({_why(error)}): what was run is unknown.")
            return dict(_UNKNOWN)
        info = info if isinstance(info, dict) else {}
        wrong = [name for name in _UNKNOWN if not _is_sound(name, info.get(name))]
        if wrong:
            self.damage.append(f"{INFO} is damaged: it does not tell {', '.join(wrong)}.")
        return {**info, **{name: _UNKNOWN[name] for name in wrong}}

    def _read(self):
        records: dict = {}
        of_another_model = set()
        # What is no UTF-8 is no JSON either, once it is replaced.
        with (self.folder / EVENTS).open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith("\n"):
                    break  # the run is writing it, or was killed while it did
                try:
                    step, values, others = self._record(line)
                except (ValueError, RecursionError) as error:
                    self.damage.append(
                        f"{EVENTS} is damaged in line {number} ({_why(error)}): what was"
                        f" recorded from there on is left out, {len(records)} records are read."
                    )
                    break
                while records and (last := next(reversed(records))) > step:
                    del records[last]
                records.setdefault(step, {}).update(values)
                if others:
                    of_another_model.add(step)
        left = len(of_another_model & set(records))
        if left:
            self.damage.append(
                f"{EVENTS} has {left} record(s) of another number of variables than {INFO}: what"
                " they say of single variables is left out."
            )
        return records

    def _record(self, line):
        """`(step, values, others)` of a line: `others` says whether it has values of another
        number of variables, which are left out. Raises ValueError where it is damaged."""
        record = json.loads(line)
        if not isinstance(record, dict) or not isinstance(record.get("values"), dict):
            raise DamagedRun("no record")
        step, kept, others = record.get("step"), {}, False
        if not _is_number(step) or step < 0:
            raise DamagedRun("no step")
        for name, value in record["values"].items():
            kind = name.partition("/")[0]
            if kind == "variable":
                sound = _are_numbers(value)
                if sound and len(value) != len(self.info["variables"]):
                    others = True
                    continue
            elif kind == "histogram":
                sound = self._is_histogram(name, value)
            else:
                sound = value is None or _is_number(value)
            if not sound:
                raise DamagedRun(f"{name[:60]!r} has no such value")
            kept[name] = value
        return step, kept, others

    def _is_histogram(self, name, value):
        if not isinstance(value, dict):
            return False
        edges, counts = value.get("edges"), value.get("counts")
        if not (_are_numbers(edges) and _are_numbers(counts) and counts):
            return False
        bins = self._bins.setdefault(name, len(counts))
        return len(counts) == bins and len(edges) == bins + 1 and None not in edges

    def names(self, group):
        """Names `group/…` of what was recorded, in alphabetical order."""
        found = {name for values in self._records.values() for name in values}
        return sorted(name for name in found if name.startswith(f"{group}/"))

    def series(self, name):
        """Examples `[n]` and values `[n]` of a key, null as NaN."""
        pairs = [(s, v[name]) for s, v in self._records.items() if name in v]
        if not pairs:
            return np.zeros(0), np.zeros(0)
        steps, values = zip(*pairs)
        return np.array(steps, float), np.array(values, float)

    def last(self, name, default=None):
        """The last value of a key, or `default` where there is none."""
        _, values = self.series(name)
        return values[-1] if len(values) else default

    def of_variables(self, name):
        """Examples `[n]` and values `[n, variables]` of `variable/name`."""
        steps, values = self.series(f"variable/{name}")
        return steps, values.reshape(len(steps), len(self.paths))

    def histograms(self, name):
        """Examples `[n]`, edges `[bins + 1]` and counts `[n, bins]` of `histogram/name`."""
        key = f"histogram/{name}"
        pairs = [(s, v[key]) for s, v in self._records.items() if key in v]
        if not pairs:
            return np.zeros(0), np.zeros(1), np.zeros([0, 0])
        steps, found = zip(*pairs)
        counts = np.array([h["counts"] for h in found], float)
        return np.array(steps, float), np.array(found[-1]["edges"], float), counts

    @property
    def sound_samples(self):
        """How many samples its estimator wants."""
        return SOUND_SAMPLES[self.info["arguments"].get("estimator", "paper")]

    @property
    def paths(self):
        """Paths of the variables."""
        return [variable["path"] for variable in self.info["variables"]]

    @property
    def sizes(self):
        """Elements of each variable, an array."""
        shapes = [variable["shape"] for variable in self.info["variables"]]
        return np.array([int(np.prod(shape)) for shape in shapes], float)


def _is_number(value):
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and abs(value) <= _LARGEST  # which NaN is not, either
    )


def _are_numbers(values):
    return isinstance(values, list) and all(v is None or _is_number(v) for v in values)


def _is_sound(name, value):
    """Whether a value of `run.json` is one that a monitor writes under a name."""
    if name in ("workers", "every"):
        return type(value) is int and 1 <= value < 1e9
    if name == "arguments":
        return isinstance(value, dict) and value.get("estimator", "paper") in SOUND_SAMPLES
    if name == "variables":
        return isinstance(value, list) and all(map(_is_variable, value))
    return isinstance(value, type(_UNKNOWN[name]))


def _is_variable(value):
    if not isinstance(value, dict) or not isinstance(value.get("path"), str):
        return False
    shape = value.get("shape")
    return isinstance(shape, list) and all(type(n) is int and 0 <= n < 2**48 for n in shape)


def _why(error):
    if isinstance(error, json.JSONDecodeError):
        return f"no JSON: {error.msg}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)[:100]


def set_aside_damaged(folder):
    """Renames a record whose lines are damaged, so that a training may begin a new one; what
    comes behind the damage would not be read.

    Returns:
        The new path; `None` where nothing is damaged, or nothing is there.
    """
    try:
        run = Run(folder)
    except FileNotFoundError:
        return None
    if len(run.damage) == (1 if run.damaged_info else 0):
        return None
    number = 1
    while (aside := run.folder / f"events.damaged-{number}.jsonl").exists():
        number += 1
    os.replace(run.folder / EVENTS, aside)
    return aside
