"""Prints the versions that a bug report needs."""

import importlib
import platform

import gsnr_tf
from gsnr_tf.comm import horovod

HELP = "versions of what matters, for bug reports"


def environment():
    """Pairs of a name and a version, or a reason why there is none."""
    yield "gsnr_tf", gsnr_tf.__version__
    yield "Python", platform.python_version()
    for name in ("tensorflow", "keras", "numpy"):
        yield name, importlib.import_module(name).__version__
    try:
        hvd = horovod.load()
    except ImportError as error:
        yield "horovod", str(error)
    else:
        built = [name for name in ("nccl", "mpi", "gloo") if getattr(hvd, f"{name}_built")()]
        version = importlib.import_module("horovod").__version__
        yield "horovod", f"{version} ({', '.join(built)})"
    tf = importlib.import_module("tensorflow")
    yield "GPUs", str(len(tf.config.list_physical_devices("GPU")))
    yield "platform", platform.platform()


def add_arguments(parser):
    """None."""


def run(args):
    for name, value in environment():
        print(f"{name:<11} {value}")
    return 0
