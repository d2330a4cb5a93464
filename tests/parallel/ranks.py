"""Runs test bodies on Horovod ranks that stay alive from test to test.

Starting TensorFlow on every rank takes seconds, so a test does not start its own
ranks: `Ranks(n).run(body, *args)` sends a function to `n` waiting processes, which
`horovodrun` started, and returns what it returned on each of them.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from multiprocessing.connection import Client, Listener

import cloudpickle
import psutil

START_SECONDS = 120
BODY_SECONDS = 90


class RankFailed(AssertionError):
    """A body raised on some rank, or did not return in time."""


class Ranks:
    """`size` processes under one `horovodrun`."""

    def __init__(self, size, environment=None):
        self.size = size
        self._key = os.urandom(16)
        self._log = tempfile.TemporaryFile(mode="w+")
        self._listener = Listener(("localhost", 0), authkey=self._key)
        self._connections = []
        host, port = self._listener.address
        horovodrun = os.path.join(os.path.dirname(sys.executable), "horovodrun")
        self._process = subprocess.Popen(
            # --disable-cache: nothing in the home folder. --gloo: TensorFlow is not
            # loaded once more to ask whether there is MPI.
            [horovodrun, "--disable-cache", "--gloo", "-np", str(size)]
            + [sys.executable, __file__, host, str(port)],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={
                **os.environ,
                "GSNR_TEST_KEY": self._key.hex(),
                "TF_NUM_INTRAOP_THREADS": "1",
                "TF_NUM_INTEROP_THREADS": "2",
                "HOROVOD_STALL_CHECK_TIME_SECONDS": "10",
                "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "30",
                **(environment or {}),
            },
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
        raise RankFailed(f"horovodrun did not start {self.size} ranks:\n{self.output()}")

    def output(self):
        """The last of what the ranks have printed."""
        self._log.seek(0)
        return self._log.read()[-4000:]

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

    def _family(self):
        try:
            top = psutil.Process(self._process.pid)
            return [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    @property
    def alive(self):
        return bool(self._connections) and self._process.poll() is None

    def stop(self):
        """Ends all ranks, whatever state they are in."""
        for connection in self._connections:
            connection.close()
        self._connections = []
        # horovodrun gives each rank a session of its own: find them by descent.
        family = self._family()
        psutil.wait_procs(family, timeout=10)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait(10)
        self._listener.close()
        self._log.close()


def serve(host, port):
    """The life of a rank: take a body, run it, send what it returned."""
    connection = Client((host, int(port)), authkey=bytes.fromhex(os.environ["GSNR_TEST_KEY"]))
    connection.send(int(os.environ["HOROVOD_RANK"]))
    while True:
        try:
            body, args = cloudpickle.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            answer = (False, body(*args))
        except BaseException:
            answer = (True, traceback.format_exc())
        connection.send(answer)


if __name__ == "__main__":
    serve(*sys.argv[1:])
