"""A job of a soak: started by `gsnr-tf run`, watched through its output and its log."""

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil

# Seconds of a busy machine: what takes longer hangs.
PATIENCE = 240.0
_POLL = 0.02
# What ranks find in their environment: limits that do not make a soak wait.
_LIMITS = {
    "HOROVOD_STALL_CHECK_TIME_SECONDS": "3",
    "GSNR_TF_STALL_SECONDS": "8",
    "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "120",
    # Gloo's own: more than ranks take to connect on a busy machine, and than a paused one
    # is told of, whose answer is waited for 5 s.
    "HOROVOD_GLOO_TIMEOUT_SECONDS": "30",
    # More than a new process takes to come on a busy machine.
    "HOROVOD_ELASTIC_TIMEOUT": "60",
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "2",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "KERAS_BACKEND": "tensorflow",
}
_HOSTS = "localhost:1\n127.0.0.1:1\n"
_ANOTHER = "127.1:1\n"
_PACE = 0.1


class Hangs(Exception):
    """Something did not happen in time, or the job ended instead."""


class Job:
    """Two ranks that train as `soak_training` says.

    Args:
        folder: `pathlib.Path`, new and empty but for `disk`, where checkpoints go.
        family: "engine" or "elastic".
        sharding: "none" or "slices".
        pace: Float, seconds that ranks sleep after each update.
    """

    def __init__(self, folder, family, sharding, pace=_PACE):
        self.folder, self.family, self.sharding = folder, family, sharding
        self.saved = folder / "disk" / "saved"
        self._process = None
        self._records, self._read = [], {}
        self.order("pace", pace)
        self.set_hosts()
        self._discovery = folder / "discover"
        self._discovery.write_text(f"#!/bin/sh\ncat '{folder}/hosts'\n")
        self._discovery.chmod(0o755)

    def order(self, name, value=""):
        """Writes a file that ranks look at."""
        aside = self.folder / f".{name}"
        aside.write_text(str(value))
        aside.rename(self.folder / name)

    def set_hosts(self, some=True, another=False):
        """What the discovery script of an elastic job prints."""
        self.order("hosts", _HOSTS * some + _ANOTHER * another)

    def start(self):
        """Starts the job, or starts it again."""
        options = ["--grace", "5", "--max-restarts", "1000", "--np", "2"]
        if self.family == "elastic":
            fewest = "2" if self.sharding == "slices" else "1"
            options += ["--min-np", fewest, "--max-np", "3", "--network-interface", "lo"]
            options += ["--blacklist-cooldown-range", "1", "2"]
            options += ["--host-discovery-script", str(self._discovery)]
        program = ["-m", "gsnr_tf.benchmarks.soak_training", str(self.folder)]
        with (self.folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "gsnr_tf.cli", "run", *options),
                    *(*program, self.family, self.sharding),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **_LIMITS},
            )

    def wait(self, seconds=PATIENCE):
        """The exit code."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Hangs("the job does not end") from None

    @property
    def runs(self):
        return self._process.poll() is None

    def end(self):
        """Ends what is left of the job, whatever state it is in."""
        if self._process is None:
            return
        for pid in self.pids().values():
            send(pid, signal.SIGKILL)
        # Of which it makes an end of all others.
        send(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    # ---- what it says and does ----------------------------------------------------

    def output(self):
        """All that the job has printed, a string."""
        return (self.folder / "output").read_text(errors="replace")

    def said(self, pattern, since):
        """Whether it printed what fits, after the first `since` characters."""
        return re.search(pattern, self.output()[since:]) is not None

    def records(self):
        """Dicts of what all ranks have noted, in the order of time, with their `pid`."""
        for path in self.folder.glob("log-*"):
            with path.open() as log:
                log.seek(self._read.get(path, 0))
                # The last line may not be whole yet.
                *lines, _ = log.read().split("\n")
            pid = int(path.name.removeprefix("log-"))
            self._read[path] = self._read.get(path, 0) + sum(len(x) + 1 for x in lines)
            self._records += [{**json.loads(line), "pid": pid} for line in lines]
        self._records.sort(key=lambda record: record["time"])
        return self._records

    def updates(self, since=0.0):
        """The records of updates later than a time."""
        return [r for r in self.records() if r["event"] == "update" and r["time"] > since]

    def pids(self):
        """Dict of the processes of the ranks there are, by rank."""
        latest = {record["pid"]: record["rank"] for record in self.records()}
        return {rank: pid for pid, rank in latest.items() if _alive(pid)}

    def wait_until(self, true, what, seconds=PATIENCE):
        """Returns the time when `true()` was first seen to be."""
        deadline = time.monotonic() + seconds
        while not true():
            if time.monotonic() > deadline:
                raise Hangs(f"waited {seconds:.0f} s in vain: {what}")
            if not self.runs:
                raise Hangs(f"the job ended with {self._process.returncode}: {what}")
            time.sleep(_POLL)
        return time.time()

    def wait_for_updates(self, number, since, what):
        """Waits until all the ranks there are have made so many updates."""

        def made():
            found = self.updates(since)
            pids = self.pids().values()
            own = [sum(r["pid"] == pid for r in found) for pid in pids]
            return own and min(own) >= number

        return self.wait_until(made, what)

    def finish(self):
        """Lets all ranks end at one update, and waits for it."""
        number = max(record["update"] for record in self.updates()) + 20
        self.order("finish", number)
        self.wait_until(lambda: not self._running_ranks(number), "the end of the job")
        code = self.wait()
        if code:
            raise Hangs(f"the job ended with {code}")
        return number

    def _running_ranks(self, number):
        reached = [r for r in self.updates() if r["update"] >= number]
        return self.runs and not reached

    def lost(self, since):
        """How many updates were made twice later than a time."""
        lost, high, anew = 0, 0, False
        for record in self.records():
            if record["event"] == "begins":
                anew = True
                continue
            update = record["update"]
            if anew and record["time"] > since:
                lost += max(0, high - update + 1)
            high = update if anew else max(high, update)
            anew = False
        return lost


def weights_of(record):
    """The vector of weights of a record of an update."""
    return np.frombuffer(base64.b64decode(record["weights"]), "float32")


def wrong(records, expected):
    """How many updates of a job ended with other weights than the undisturbed run.

    Args:
        records: Its records of updates, in the order of time.
        expected: Dict of vectors of weights, by update.
    """
    number, others = 0, False
    for record in records:
        # As long as there were always two ranks: the same bits.
        others |= record["size"] != 2
        number += not _right(weights_of(record), expected[record["update"]], others)
    return number


def _right(value, expected, others):
    if not others:
        return value.tobytes() == expected.tobytes()
    error = np.linalg.norm(value.astype("float64") - expected)
    return bool(error <= 1e-5 * np.linalg.norm(expected))


def _alive(pid):
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def send(pid, number):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@contextlib.contextmanager
def undisturbed(folder, family, sharding, last):
    """An undisturbed run up to an update; gives the function that waits for its weights."""
    (folder / "disk").mkdir(parents=True)
    job = Job(folder, family, sharding, pace=0.0)
    job.order("undisturbed")
    job.order("finish", last)
    job.start()

    def weights():
        code = job.wait(4 * PATIENCE)
        if code:
            raise RuntimeError(f"An undisturbed run failed:\n{job.output()}")
        return {record["update"]: weights_of(record) for record in job.updates()}

    try:
        yield weights
    finally:
        job.end()


def remove(path):
    """Removes a file, or a folder with all that is in it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
