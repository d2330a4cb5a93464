"""The error that ends a rank, written down for the launcher.

Among the ranks of a job that failed one failed first, and the others for want of it.
Their output does not always show which: errors that were handled are printed as well,
and a rank may be ended before its exit code is known. So a rank that `gsnr-tf run`
started records the exception that nothing caught, at the moment it is raised to the top,
in a file that the supervisor beside it reads when it has ended. A rank that leaves without
an error writes that down as well: Horovod then ends the others, and they may end first.
"""

import atexit
import contextlib
import functools
import json
import multiprocessing
import os
import sys
import time
import traceback

_LONGEST = 32_000  # characters of a message or a traceback, from its end


def record(path, kind, error, trace):
    """Writes the exception as JSON: time, type, message, traceback with its causes."""
    lines = traceback.format_exception(kind, error, trace)
    found = {
        "left": False,
        "time": time.time(),
        "type": f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins."),
        "message": str(error)[-_LONGEST:],
        "traceback": "".join(lines)[-_LONGEST:],
    }
    _write(path, found)


def _write(path, found):
    # Complete or not there: the rank may be killed while it writes.
    aside = f"{path}.{os.getpid()}"
    with open(aside, "w", encoding="utf-8") as file:
        json.dump(found, file)
    os.replace(aside, path)


def install():
    """Records what nothing catches, where the launcher has asked for it.

    Processes that the rank itself starts with `multiprocessing` are not the rank.
    """
    path = os.environ.get("GSNR_TF_ERROR_FILE")
    if not path:
        return
    before = sys.excepthook

    def hook(kind, error, trace):
        try:
            # Asked now: while such a process imports its modules it does not know yet.
            is_rank = multiprocessing.parent_process() is None
            if is_rank and issubclass(kind, Exception):
                record(path, kind, error, trace)
        except Exception:
            pass  # what the rank has to say comes first
        before(kind, error, trace)

    sys.excepthook = hook


@functools.cache
def note_exit():
    """Records when this rank leaves. Call it when Horovod is initialised: what is to be
    done at exit is done in reverse order, and this must come before Horovod's part."""
    path = os.environ.get("GSNR_TF_ERROR_FILE")
    if path:
        atexit.register(_leave, path)


def _leave(path):
    if multiprocessing.parent_process() is None and not os.path.exists(path):
        with contextlib.suppress(OSError):
            _write(path, {"left": True, "time": time.time()})
