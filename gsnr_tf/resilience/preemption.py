"""SIGTERM as a wish: finish the update, save, and come back later.

Slurm and Kubernetes send it some time before they kill, when a job's time is over or its
place is needed; `gsnr-tf run` passes it on to all ranks and waits `--grace` seconds.
"""

import signal
import sys
import threading

import tensorflow as tf

from gsnr_tf import comm
from gsnr_tf.resilience.checkpoint import together
from gsnr_tf.resilience.checkpoint_files import locate

# EX_TEMPFAIL of sysexits.h: nothing is wrong, start the same command again later.
EXIT_CODE = 75


class Notice:
    """Whether SIGTERM has come to this process, which no longer ends by it.

    A Python program notices signals between two of its own steps: an update that is
    under way is finished first. In threads other than the main one signals cannot be
    received, and `received` stays `False`.

    Attributes:
        received: Bool.
    """

    def __init__(self):
        self.received = False
        self._before = None

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(self, *_):
        """SIGTERM does again what it did before."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _receive(self, *_):
        self.received = True

    def on_any_rank(self, communicator=None):
        """Whether any rank has received it: a collective, at one point of all ranks.

        Args:
            communicator: The `Communicator`; left out, the one of all ranks of the job.
        """
        if communicator is None:
            communicator = comm.choose("auto", tf.distribute.get_strategy())
        return any(communicator.gather(self.received, "gsnr.preemption"))


def any_saved(folder, communicator):
    """Whether any rank sees a checkpoint in a folder; all must ask at one point.

    All load where one sees something: that tells those who see nothing.
    """
    found = together(communicator, lambda: locate(folder) is not None)
    return any(communicator.gather(found, "gsnr.preemption"))


def say_resumed(path):
    """Tells people, once, from where a training goes on."""
    _say(f"Goes on from {path}.")


def exit_saved(path):
    """Ends this rank, whose training is saved, with `EXIT_CODE`."""
    _say(f"Told to end: {path} is saved. Start the same command to go on.")
    sys.exit(EXIT_CODE)


def _say(text):
    if comm.rank() == 0:
        print(text, file=sys.stderr, flush=True)
