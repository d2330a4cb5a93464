"""Runs a command as long as somebody listens to what it prints.

    python supervise.py COMMAND ...

Stands beside every rank on its host, and beside horovodrun. An ssh connection that
ends takes nothing with it: the command at its far end goes on, and so would ranks
whose job was stopped. But its output then leads nowhere, which this sees at once.

A file that needs nothing but Python, and is run by its path: importing gsnr_tf would
load TensorFlow once more for each rank.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import threading

_PATIENCE = 10.0  # seconds from asking a command to end to making it end
_PR_SET_PDEATHSIG = 1


def share_of_cores(environment):
    """Variables that make a rank use its share of this host's cores, unless set.

    Ranks that each start a thread per core get in each other's way, the more so as
    every collective waits for the slowest.
    """
    threads = len(os.sched_getaffinity(0)) // int(environment["HOROVOD_LOCAL_SIZE"])
    defaults = {
        "OMP_NUM_THREADS": max(1, threads),
        "TF_NUM_INTRAOP_THREADS": max(1, threads),
        # Horovod's operations hold no thread while they wait, so one would do; the
        # second keeps Python functions in the input pipeline from holding up the rest.
        "TF_NUM_INTEROP_THREADS": 2,
    }
    return {k: str(v) for k, v in defaults.items() if k not in environment}


def _signal_group(command, number):
    try:
        os.killpg(command.pid, number)
    except ProcessLookupError:
        pass


def _end(command):
    """Asks the command and its descendants to end, then makes them."""
    _signal_group(command, signal.SIGTERM)
    try:
        command.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        _signal_group(command, signal.SIGKILL)


def _end_when_unheard(command):
    poller = select.poll()
    poller.register(sys.stdout.fileno(), 0)  # an error or a hang-up, always reported
    poller.poll()
    _end(command)


def _die_with_parent():
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(arguments):
    """Runs the command; returns its exit code, 128 + signal where one ended it."""
    environment = dict(os.environ)
    if "HOROVOD_LOCAL_SIZE" in environment:
        environment.update(share_of_cores(environment))
    command = subprocess.Popen(
        arguments,
        env=environment,
        # A group of its own, which can be ended as one.
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(
            number, lambda *_: threading.Thread(target=_end, args=[command]).start()
        )
    threading.Thread(target=_end_when_unheard, args=[command], daemon=True).start()
    code = command.wait()
    # What the command has started and not ended itself.
    _signal_group(command, signal.SIGKILL)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    # Not sys.exit: a thread that still waits for the patience to end must not hold
    # the exit up.
    os._exit(main(sys.argv[1:]))
