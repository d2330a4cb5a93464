"""The processes that a study trains in, seen from the study."""

import json
import secrets
import socket

from gsnr_tf.compare.worker import ADDRESS
from gsnr_tf.launch import Background, CannotStart, Job

# Studies run one process for each core.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
}
START_SECONDS = 120
_GRACE = 1.0  # seconds to end in good order: nothing is lost of a run that is ended
_LAST_SECONDS = 60.0  # for a worker that fails to end, so that it is known why


class WorkerFailed(RuntimeError):
    """A worker raised or died; the message says what it said."""


class Worker:
    """One process, or several ranks, that train one run at a time.

    Args:
        folder: `Path` of the run folder, which holds the settings; its folder `worker-N`
            gets what the ranks print.
        index: N.
        ranks: How many ranks.
    """

    def __init__(self, folder, index, ranks):
        self._folder = folder / f"worker-{index}"
        self._word = secrets.token_hex(16)
        self._server = socket.create_server(("localhost", 0))
        self._server.settimeout(1)
        port = self._server.getsockname()[1]
        self._ranks = Background(
            Job(
                command=["-m", "gsnr_tf.compare.worker", str(folder)],
                ranks=ranks,
                folder=self._folder,
                environment={**ONE_THREAD, ADDRESS: f"{port} {self._word}"},
                quiet=True,
                grace=_GRACE,
            )
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
                if not self._ranks.alive:
                    break
                continue
            connection.settimeout(None)
            incoming, outgoing = connection.makefile("r"), connection.makefile("w")
            if incoming.readline().strip() == self._word:
                return incoming, outgoing
        raise WorkerFailed(f"A worker did not start. {self._last_words()}")

    def _last_words(self):
        try:
            self._ranks.wait(_LAST_SECONDS)
        except CannotStart as error:
            return str(error)
        return f"What it printed is in {self._folder}.\n{self._ranks.job.failure}"

    def close(self):
        """Ends the process, also in the middle of a run."""
        self._ranks.stop()
        self._server.close()
