"""What the main thread of this process is doing, seen from another thread.

Read off its stack, so that scripts, Keras and callbacks need not say it themselves.
"""

import contextlib
import dataclasses
import functools
import gc
import os
import sys
import sysconfig
import threading
from pathlib import Path

_TRAINER = "keras/src/backend/tensorflow/trainer.py"
_MEETING = "gsnr_tf/comm/horovod.py"
# Part of a file's path, names of functions (none: any), and what a thread does in them.
_SIGNS = [
    (_MEETING, ("gather",), "meets"),
    ("keras/src/saving/", (), "saves"),
    ("tensorflow/python/saved_model/", (), "saves"),
    ("gsnr_tf/resilience/checkpoint", (), "saves"),
    ("polymorphic_function/tracing_compilation.py", ("trace_function",), "compiles"),
    (_TRAINER, ("evaluate", "test_on_batch"), "evaluates"),
    (_TRAINER, ("predict", "predict_on_batch"), "predicts"),
    ("keras/src/callbacks/callback_list.py", (), "calls back"),
    (_TRAINER, ("fit", "train_on_batch"), "trains"),
]
_PARTS = [("calls back", "evaluates"), ("calls back", "predicts")]
_LIBRARIES = (
    *{sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")},
    str(Path(__file__).parents[1]) + os.sep,
    "<",
)


@dataclasses.dataclass(frozen=True)
class Phase:
    """What a thread does.

    Attributes:
        kind: "trains" (in `fit`, between its callbacks), "trains alone" (the same with
            an optimizer of somebody else), "calls back", "evaluates", "predicts",
            "saves" (or loads), "compiles", "meets" (waits for all ranks outside of an
            update), "elsewhere" or "ended".
        in_fit: Whether it is inside of `fit`.
        where: "file:line" of the user's code that it is in, "" where there is none.
        call: Its innermost frame where it trains or meets: the same object as long as it
            has not come back from there.
        place: Name of the collective where it meets, else "".
    """

    kind: str
    in_fit: bool
    where: str
    call: object = None
    place: str = ""


def of_main_thread():
    """The `Phase` of the main thread."""
    main = threading.main_thread()
    with _no_collection():
        frame = sys._current_frames().get(main.ident or 0) if main.is_alive() else None
        return of_frame(frame) if frame else Phase("ended", False, "")


@contextlib.contextmanager
def _no_collection():
    """Keeps the garbage collector from running meanwhile.

    Up to Python 3.11 it may run wherever an object is made, such as that for a frame of
    another thread. Its finalizers let that thread go on and return from the frame, whose
    memory is then read all the same: Python crashes.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def of_frame(frame):
    """The `Phase` of a thread whose innermost frame this is."""
    kind, in_fit, where, call, place = "elsewhere", False, "", frame, ""
    while frame:
        code = frame.f_code
        sign, fits, users = _known(code.co_filename, code.co_name)
        # A callback of `evaluate` is a part of it, one of `fit` is not.
        if kind == "elsewhere" or (kind, sign) in _PARTS:
            kind = sign
            if kind == "trains" and not _is_ours(frame.f_locals.get("self")):
                kind = "trains alone"
            if kind == "meets":
                place = frame.f_locals.get("name", "")
        in_fit = in_fit or fits
        if users and not where:
            where = f"{os.path.basename(code.co_filename)}:{frame.f_lineno}"
        frame = frame.f_back
    waits = kind in ("trains", "meets")
    return Phase(kind, in_fit, where, call if waits else None, place)


def _is_ours(model):
    """Whether ranks train this model together, as far as one can see."""
    optimizer = getattr(model, "optimizer", None)
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return any(
        kind.__module__.startswith("gsnr_tf.")
        for kind in (*type(optimizer).__mro__, *type(inner).__mro__)
    )


@functools.lru_cache(maxsize=10_000)
def _known(path, name):
    """What a function stands for: its sign, whether it is `fit`, and the user's own."""
    path = path.replace(os.sep, "/")
    signs = (kind for part, names, kind in _SIGNS if part in path and (not names or name in names))
    fits = name == "fit" and path.endswith(_TRAINER)
    return next(signs, "elsewhere"), fits, not path.startswith(_LIBRARIES)
