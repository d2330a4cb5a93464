"""Builds Horovod for the TensorFlow of this Python environment, and installs it there.

Takes a C++ compiler and make, and about three minutes; the wheel is kept, so that the
next environment of the same kind gets it in seconds.
"""

import subprocess
import sys
from pathlib import Path

from gsnr_tf import launch

HELP = "build and install Horovod, for several ranks"
SCRIPT = Path(launch.__file__).with_name("install_horovod.sh")


def add_arguments(parser):
    parser.add_argument("--gpu", action="store_true", help="for NVIDIA GPUs; needs nvcc and NCCL")
    parser.add_argument(
        "--rebuild", action="store_true", help="also where a wheel is kept from before"
    )


def run(args):
    options = [f"--{name}" for name in ("gpu", "rebuild") if getattr(args, name)]
    return subprocess.run(["bash", str(SCRIPT), *options, sys.executable]).returncode
