"""A rank whose script has ended well goes on to answer the others.

Rank 0 may evaluate for an hour after training and save the model then: it needs the
shares of the others, who have nothing left to do. So a rank that has shares to hand out
stays until all others have come to the end of their scripts too, or are gone. A rank
that fails does not: its exit code tells the launcher that the job is over.
"""

import atexit
import builtins
import functools
import json
import os
import signal
import sys
import threading
import time

from gsnr_tf.comm import server

# Seconds between two looks at a rank whose script goes on: from, and up to.
_FIRST_LOOK, _LAST_LOOK = 0.05, 2.0

# At most so long does the end of a process wait for that of Horovod.
_SHUTDOWN_SECONDS = 60
# What the functions that `atexit` calls may still ask.
_STILL_KNOWN = [
    f"horovod_{what}"
    for what in (
        "is_initialized", "rank", "size", "local_rank", "local_size", "cross_rank",
        "cross_size", "is_homogeneous",
    )
]  # fmt: skip

_ended = threading.Event()
_leave = threading.Event()
_state: dict = {"others": [], "needed": lambda: False, "failed": False}


def lost_limit():
    """Seconds after which a rank that does not answer counts as gone; 0 is never."""
    return float(os.environ.get("GSNR_TF_STALL_SECONDS", "300")) or float("inf")


def serve_until_all_have_ended(others, needed):
    """Makes this process stay at the end of its script, if it ends well.

    Args:
        others: List of `Member`, the other ranks of the job.
        needed: Function that tells whether there is anything to hand out.
    """
    _state.update(others=others, needed=needed)
    _start()


def ended():
    """Whether the script of this process has ended, and the process stays."""
    return _ended.is_set()


def leave():
    """Makes a process that stays, or would, end instead."""
    _leave.set()


@functools.cache
def _start():
    _watch_for_failure()
    # Not a daemon: the interpreter waits for it before it runs what is registered with
    # atexit, by which TensorFlow and Horovod shut down.
    threading.Thread(target=_stay, name="gsnr_tf steward").start()


def _watch_for_failure():
    """Notes exceptions that end the script, and exit codes other than 0."""
    show = sys.excepthook

    def failed(*exception):
        _state["failed"] = True
        show(*exception)

    sys.excepthook = failed
    for place, name in [(sys, "exit"), (builtins, "exit"), (builtins, "quit")]:
        if hasattr(place, name):
            setattr(place, name, _noting(getattr(place, name)))


def _noting(end):
    @functools.wraps(end)
    def noted(code=None):
        if threading.current_thread() is threading.main_thread():
            _state["failed"] = code not in (None, 0)
        end(code)

    return noted


def _stay():
    me = threading.current_thread()
    threading.main_thread().join()
    # A script has not ended while it still writes a checkpoint in the background.
    for thread in threading.enumerate():
        if thread is not me and not thread.daemon:
            thread.join()
    if not _state["failed"] and _state["needed"]():
        _end_at_interrupt()
        _ended.set()
        shut_horovod_down()
        _wait_for(_state["others"])
    # TensorFlow takes its time to end. Who asks meanwhile shall not wait for an answer.
    server.close_all()


def _end_at_interrupt():
    """Lets Ctrl-C end a process that stays as it ends others, by SIGINT.

    The interpreter, which waits for the steward, would note the KeyboardInterrupt as one
    more exception that nobody handles, and end with exit code 0.
    """
    show = sys.unraisablehook

    def hook(unraisable):
        if unraisable.exc_type is not KeyboardInterrupt:
            return show(unraisable)
        print(
            "gsnr_tf: interrupted while other ranks could still ask for what this one "
            "holds of the optimizer's state.",
            file=sys.stderr,
        )
        sys.stdout.flush()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)

    sys.unraisablehook = hook


def shut_horovod_down():
    """Ends Horovod on all ranks, from a thread: whoever waits in a collective fails.

    That of this process goes on to answer what needs no other rank.
    """
    hvd = sys.modules.get("horovod.tensorflow")
    if not hvd or not hvd.is_initialized():
        return
    library = hvd.rank.__self__.MPI_LIB_CTYPES
    known = {name: getattr(library, name)() for name in _STILL_KNOWN}
    done = threading.Event()
    # Two threads must not do it at once: at the end of the process, wait for this one.
    atexit.unregister(hvd.shutdown)
    atexit.register(done.wait, _SHUTDOWN_SECONDS)
    try:
        hvd.shutdown()
        for name, value in known.items():
            setattr(library, name, lambda value=value: value)
    finally:
        done.set()


def _wait_for(others):
    for other in others:
        pause, heard = _FIRST_LOOK, time.monotonic()
        while _state["needed"]() and not _leave.is_set():
            try:
                if json.loads(other.ask("status"))["ended"]:
                    break
                heard = time.monotonic()
            except ConnectionRefusedError:
                break
            except OSError:
                if time.monotonic() - heard > lost_limit():
                    break
            _leave.wait(pause)
            pause = min(2 * pause, _LAST_LOOK)
