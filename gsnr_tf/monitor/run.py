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


class Run:
    """What `GSNRMonitor` recorded of one training.

    A training that was resumed repeats some steps; what was recorded last counts.

    Attributes:
        info: Dict, the content of `run.json`.
        folder: `pathlib.Path`.
    """

    def __init__(self, folder):
        """Reads a folder.

        Raises:
            FileNotFoundError: It holds no run.
        """
        self.folder = Path(folder)
        missing = [n for n in (INFO, EVENTS) if not (self.folder / n).exists()]
        if missing:
            raise FileNotFoundError(
                f"{folder} is not the folder of a run: {' and '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not there. Give `fit` the "
                "callback gsnr_tf.callbacks.GSNRMonitor(folder), and name that folder."
            )
        self.info = json.loads((self.folder / INFO).read_text())
        self._records = self._read()

    def _read(self):
        records = {}
        with (self.folder / EVENTS).open(encoding="utf-8") as lines:
            for line in lines:
                if not line.endswith("\n"):
                    break  # the run is writing it, or was killed while it did
                record = json.loads(line)
                step = record["step"]
                while records and (last := next(reversed(records))) > step:
                    del records[last]
                records.setdefault(step, {}).update(record["values"])
        return records

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
