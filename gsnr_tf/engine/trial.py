"""A job that is a trial of `gsnr-tf tune`: other sizes, a few updates, a report.

The variable GSNR_TF_TRIAL of the environment makes it one. It is JSON:
`{"changes": {key: value, "section": {…}}, "report": path}`.
"""

import json
import os
import time
from pathlib import Path

from gsnr_tf.engine.flops import peak_memory

VARIABLE = "GSNR_TF_TRIAL"


def changed(values):
    """A configuration, a dict, with the changes of the trial, if this is one."""
    if VARIABLE not in os.environ:
        return values
    values = merged(values, json.loads(os.environ[VARIABLE])["changes"])
    gsnr = values.get("gsnr")
    if isinstance(gsnr, dict):
        # A trial measures the batch that it is told.
        values["gsnr"] = {k: v for k, v in gsnr.items() if k != "batch_ramp"}
    return values


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


class Trial:
    """Measures updates, reports, and ends the job.

    Args:
        engine: The `Engine`.
        communicator: The `Communicator`.
        first: Whether this is rank 0, which writes the report.
    """

    def __init__(self, engine, communicator, first):
        self._engine, self._comm, self._first = engine, communicator, first
        self._report = Path(json.loads(os.environ[VARIABLE])["report"])

    def update(self):
        """After each update; raises SystemExit after the last of the trial."""
        tuning = self._engine.config.autotuning
        step = self._engine.global_steps
        if step == tuning.start_profile_step:
            self._began = time.perf_counter()
        if step < tuning.end_profile_step:
            return
        seconds = time.perf_counter() - self._began
        updates = tuning.end_profile_step - tuning.start_profile_step
        # The slowest rank and the fullest one decide.
        seconds, memory = zip(*self._comm.gather((seconds, peak_memory())))
        examples = updates * self._engine.train_batch_size()
        found = {"throughput": examples / max(seconds), "memory": max(memory)}
        if self._first:
            self._report.write_text(json.dumps(found), encoding="utf-8")
        raise SystemExit(0)
