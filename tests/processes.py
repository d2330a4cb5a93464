"""Commands that tests start: each ends in time and leaves no process behind."""

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
MARK = "GSNR_TEST_PROCESS"

# Ranks that each start a thread per core get into each other's way. The second
# thread between operations keeps input pipelines from holding up the rest.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "2",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}


class Process:
    """A command in a session of its own, and all processes that descend from it."""

    def __init__(self, *command, **environment):
        self._mark = uuid.uuid4().hex
        # A file and not a pipe: a pipe would have to be emptied, and would stay open
        # as long as any descendant lives.
        self._log = tempfile.TemporaryFile()
        # A killed process cannot take away the files that TensorFlow made for it.
        self._temporary = tempfile.TemporaryDirectory(prefix="gsnr_tf-test-")
        self._process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={
                **os.environ,
                **ONE_THREAD,
                MARK: self._mark,
                "TMPDIR": self._temporary.name,
                **environment,
            },
        )

    def output(self):
        """What the command and its descendants have printed so far."""
        # Not by seek and read: the descendants write at the position that they move.
        log = self._log.fileno()
        return os.pread(log, os.fstat(log).st_size, 0).decode(errors="replace")

    @property
    def alive(self):
        return self._process.poll() is None

    def wait(self, seconds):
        """The exit code; raises subprocess.TimeoutExpired."""
        return self._process.wait(seconds)

    def kill(self):
        """Kills the command alone, as a power cut or `kill -9` would."""
        self._process.kill()
        self._process.wait(10)

    def family(self):
        """The processes of this command that are alive.

        They are told by a mark in their environment: horovodrun gives each rank a
        session of its own, and a rank whose parent died has no descent to follow.
        """
        alive = []
        for process in psutil.process_iter():
            # Others' processes cannot be read, and zombies have no environment.
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self._mark:
                    alive.append(process)
        return alive

    def end(self, patience=0):
        """Kills what is alive of the family after `patience` seconds."""
        _, left = psutil.wait_procs(self.family(), timeout=patience)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(10)
        self._log.close()
        self._temporary.cleanup()


@dataclasses.dataclass(frozen=True)
class Finished:
    code: int
    output: str


def run(command, seconds, **environment):
    """Runs a command to its end."""
    return run_together([(command, environment)], seconds)[0]


def run_together(commands, seconds):
    """Runs `(command, environment)` pairs side by side; a `Finished` for each."""
    started = []
    try:
        for command, environment in commands:
            started.append(Process(*command, **environment))
        deadline = time.monotonic() + seconds
        return [_finish(process, deadline) for process in started]
    finally:
        for process in started:
            process.end()


def _finish(process, deadline):
    try:
        code = process.wait(max(0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise AssertionError(f"not done in time:\n{process.output()}") from None
    # Those that were told to end may take a moment, but not for ever.
    _, left = psutil.wait_procs(process.family(), timeout=10)
    output = process.output()
    assert not left, f"left behind: {left}\n{output}"
    return Finished(code, output)


def python(*arguments):
    return [sys.executable, *arguments]


def ranks(size, *arguments, hosts=1):
    """A command that runs a script on `size` ranks, shared out to so many hosts.

    The hosts are this one by other names. What ranks print begins with "0 | ".
    """
    names = ["localhost", "127.0.0.1"][:hosts]
    slots = ",".join(f"{name}:{size // hosts}" for name in names)
    return python("-m", "gsnr_tf.cli", "run", "--hosts", slots, *arguments)


def horovodrun(size, *arguments):
    """A command that runs Python on `size` ranks by Horovod's own launcher.

    --disable-cache: nothing in the home folder. --gloo: TensorFlow is not loaded once
    more to ask whether there is MPI.
    """
    program = Path(sys.executable).with_name("horovodrun")
    options = ["--disable-cache", "--gloo", "-np", str(size)]
    return [str(program), *options, *python(*arguments)]


def workers(number, *arguments):
    """Pairs for `run_together`: a Python script on so many workers of tf.distribute."""
    # Held together, so that they differ; free a moment ago.
    sockets = [socket.create_server(("localhost", 0)) for _ in range(number)]
    cluster = {"worker": [f"localhost:{held.getsockname()[1]}" for held in sockets]}
    for held in sockets:
        held.close()
    tasks = [{"type": "worker", "index": index} for index in range(number)]
    settings = [json.dumps({"cluster": cluster, "task": task}) for task in tasks]
    return [(python(*arguments), {"TF_CONFIG": setting}) for setting in settings]
