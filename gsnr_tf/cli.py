"""The command `gsnr-tf`."""

import argparse
import importlib
import platform

import gsnr_tf
from gsnr_tf.comm import horovod


def environment():
    """What a bug report needs: pairs of a name and a version or a reason."""
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


def main(arguments=None):
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="gsnr-tf", description="Large-batch training for Keras 3."
    )
    parser.add_argument("--version", action="version", version=gsnr_tf.__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("env", help="versions of what matters, for bug reports")
    parser.parse_args(arguments)
    for name, value in environment():
        print(f"{name:<11} {value}")
    return 0
