"""A job that is a trial of `gsnr-tf tune`: other sizes, a few updates, a report.

`gsnr-tf tune` starts the script of the user, who knows nothing of trials. So it tells the
engine in the environment variable GSNR_TF_TRIAL, which `initialize` reads, and nothing
else does: JSON, `{"changes": {key: value, "section": {…}}, "report": path}`.
"""

import json
import os
import time
from pathlib import Path

from gsnr_tf import comm

VARIABLE = "GSNR_TF_TRIAL"


def described(changes, report):
    """Dict of the environment variable that makes a job a trial.

    Args:
        changes: Dict, what the trial has otherwise than the configuration.
        report: Path of the file that the trial writes.
    """
    # A trial measures the batch that it is told.
    changes = {**changes, "gsnr": {**changes.get("gsnr", {}), "batch_ramp": None}}
    return {VARIABLE: json.dumps({"changes": changes, "report": str(report)})}


def merged(values, changes):
    """`values` with `changes`, section by section; a change to `None` leaves it out."""
    values = dict(values)
    for key, change in changes.items():
        if isinstance(change, dict):
            values[key] = merged(values.get(key, {}), change)
        elif change is None:
            values.pop(key, None)
        else:
            values[key] = change
    return values


class TuneTrial:
    """Measures updates, reports, and ends the job.

    Args:
        changes: Dict, see `merged`.
        report: Path of the file to write.
    """

    def __init__(self, changes, report):
        self.changes, self._report = changes, Path(report)

    @classmethod
    def of_environment(cls):
        """The `TuneTrial` that this process is, or `None`."""
        told = os.environ.get(VARIABLE)
        return cls(**json.loads(told)) if told else None

    def update(self, engine, communicator):
        """After each update; raises SystemExit after the last of the trial.

        Args:
            engine: The `Engine`.
            communicator: The `Communicator`; rank 0 writes the report.
        """
        from gsnr_tf.engine.flops import peak_memory

        tuning = engine.config.autotuning
        step = engine.global_steps
        if step == tuning.start_profile_step:
            self._began = time.perf_counter()
        if step < tuning.end_profile_step:
            return
        seconds = time.perf_counter() - self._began
        updates = tuning.end_profile_step - tuning.start_profile_step
        # The slowest rank and the fullest one decide.
        seconds, memory = zip(*communicator.gather((seconds, peak_memory())))
        examples = updates * engine.train_batch_size()
        found = {"throughput": examples / max(seconds), "memory": max(memory)}
        if comm.rank() == 0:
            self._report.write_text(json.dumps(found), encoding="utf-8")
        raise SystemExit(0)
