"""The processes that a study trains in, seen from the study."""

import json
import os
import secrets
import socket
import subprocess
import sys
from pathlib import Path

from gsnr_tf.compare.worker import ADDRESS

ONE_THREAD = {"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
START_SECONDS = 120


class WorkerFailed(RuntimeError):
    """A worker raised or died; the message says what it said."""


class Worker:
    """One process, or several ranks under horovodrun, that train one run at a time.

    Args:
        folder: `Path` of the run folder, which holds the settings; its `worker-N.log`
            gets what the process prints.
        index: N.
        ranks: How many ranks.
    """

    def __init__(self, folder, index, ranks):
        self._log = folder / f"worker-{index}.log"
        self._word = secrets.token_hex(16)
        self._server = socket.create_server(("localhost", 0))
        self._server.settimeout(1)
        port = self._server.getsockname()[1]
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(
                [
                    *_launcher(ranks),
                    sys.executable,
                    "-m",
                    "gsnr_tf.compare.worker",
                    folder,
                ],
                env={**os.environ, **ONE_THREAD, ADDRESS: f"{port} {self._word}"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for the study, which ends its workers.
                start_new_session=True,
            )
        self._connection = None

    def train(self, index, regularizer, **run):
        """Has `Trainer.run(**run)` done for a cell of the settings; returns its result.

        Raises:
            WorkerFailed: The run raised, or the process died.
        """
        if self._connection is None:
            self._connection = self._accept()
        incoming, outgoing = self._connection
        job = {"cell": index, "regularizer": regularizer, "run": run}
        try:
            print(json.dumps(job), file=outgoing, flush=True)
            line = incoming.readline()
        except OSError:
            line = ""
        if not line:
            raise WorkerFailed(f"A worker died. {self._last_words()}")
        result = json.loads(line)
        if "error" in result:
            raise WorkerFailed(f"A run failed, {run}:\n{result['error']}")
        return result

    def _accept(self):
        for _ in range(START_SECONDS):
            try:
                connection, _ = self._server.accept()
            except TimeoutError:
                if self._process.poll() is not None:
                    break
                continue
            connection.settimeout(None)
            incoming, outgoing = connection.makefile("r"), connection.makefile("w")
            if incoming.readline().strip() == self._word:
                return incoming, outgoing
        raise WorkerFailed(f"A worker did not start. {self._last_words()}")

    def _last_words(self):
        lines = self._log.read_text(errors="replace").splitlines()[-20:]
        return f"The end of {self._log}:\n" + "\n".join(lines)

    def close(self):
        """Ends the process, also in the middle of a run."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()
        self._server.close()


def _launcher(ranks):
    if ranks == 1:
        return []
    horovodrun = Path(sys.executable).with_name("horovodrun")
    if not horovodrun.exists():
        raise WorkerFailed(
            f"There is no horovodrun beside {sys.executable}: install Horovod with "
            "`bash horovod_scripts/install_horovod.sh`, or leave --np out."
        )
    return [str(horovodrun), "--gloo", "--disable-cache", "-np", str(ranks)]
