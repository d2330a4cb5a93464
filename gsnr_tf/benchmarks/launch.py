"""Starts a benchmark on several ranks and shows what rank 0 prints."""

import subprocess
import sys
from pathlib import Path

_FROM_RANK_0 = "[0]<stdout>:"


def on_ranks(number, module, arguments):
    """Runs `python -m module` under horovodrun on this machine; returns its exit code."""
    horovodrun = Path(sys.executable).with_name("horovodrun")
    if not horovodrun.exists():
        print(
            f"There is no horovodrun beside {sys.executable}: install Horovod with "
            "`bash horovod_scripts/install_horovod.sh`.",
            file=sys.stderr,
        )
        return 1
    command = [horovodrun, "--gloo", "--disable-cache", "-np", str(number)]
    command += [sys.executable, "-m", module, *arguments]
    job = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    others = []
    for line in job.stdout:
        if line.startswith(_FROM_RANK_0):
            print(line[len(_FROM_RANK_0) :], end="", flush=True)
        else:
            others.append(line)
    if job.wait() != 0:
        print("".join(others[-40:]), file=sys.stderr)
    return job.returncode
