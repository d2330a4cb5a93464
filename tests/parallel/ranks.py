"""Runs test bodies on Horovod ranks that stay alive from test to test.

Starting TensorFlow on every rank takes seconds, so a test does not start its own
ranks: `Ranks(n).run(body, *args)` sends a function to `n` waiting processes, which
`gsnr-tf run` started, and returns what it returned on each of them.
"""

import os
import signal
import sys
from multiprocessing.connection import Listener
from pathlib import Path

import cloudpickle

from tests.processes import Process, ranks

PROGRAM = Path(__file__).with_name("serve.py")
START_SECONDS = 120
BODY_SECONDS = 240


def send_by_value(module):
    """Lets ranks run functions of a test module, which they cannot import."""
    cloudpickle.register_pickle_by_value(sys.modules[module])


class RankFailed(AssertionError):
    """A body raised on some rank, or did not return in time."""


class Ranks:
    """`size` processes under one launcher, on as many of `hosts` each."""

    def __init__(self, size, environment=None, hosts=1):
        self.size = size
        self._key = os.urandom(16)
        self._listener = Listener(("localhost", 0), authkey=self._key)
        self._connections = []
        host, port = self._listener.address
        self._process = Process(
            *ranks(size, str(PROGRAM), host, str(port), hosts=hosts),
            GSNR_TEST_KEY=self._key.hex(),
            HOROVOD_STALL_CHECK_TIME_SECONDS="60",
            HOROVOD_STALL_SHUTDOWN_TIME_SECONDS="200",
            **(environment or {}),
        )
        try:
            self._accept()
        except BaseException:
            self.stop()
            raise

    def _accept(self):
        signal.signal(signal.SIGALRM, self._too_late)
        signal.alarm(START_SECONDS)
        try:
            arrived = [self._listener.accept() for _ in range(self.size)]
            self._connections = [
                c for _, c in sorted(((c.recv(), c) for c in arrived), key=lambda p: p[0])
            ]
        finally:
            signal.alarm(0)

    def _too_late(self, *_):
        raise RankFailed(f"gsnr-tf run did not start {self.size} ranks:\n{self.output()}")

    def output(self):
        """The last of what the ranks have printed."""
        return self._process.output()[-4000:]

    def run(self, body, *args, seconds=BODY_SECONDS):
        """What `body(*args)` returned on each rank, in the order of the ranks."""
        for connection in self._connections:
            connection.send_bytes(cloudpickle.dumps((body, args)))
        results, failures = [], []
        for rank, connection in enumerate(self._connections):
            try:
                done = connection.poll(seconds)
                failed, value = connection.recv() if done else (True, "no answer in time")
            except EOFError:
                failed, value = True, "the process died"
            (failures if failed else results).append(value)
            if failed:
                failures[-1] = f"rank {rank}: {value}"
        if failures:
            # Ranks that disagree about what comes next are of no use to later tests.
            printed = self.output()
            self.stop()
            raise RankFailed("\n".join([*failures, printed]))
        return results

    @property
    def alive(self):
        return bool(self._connections) and self._process.alive

    def stop(self):
        """Ends all ranks, whatever state they are in."""
        for connection in self._connections:
            connection.close()
        self._connections = []
        # Without a connection they end by themselves, unless a collective holds them.
        self._process.end(patience=10)
        self._listener.close()
