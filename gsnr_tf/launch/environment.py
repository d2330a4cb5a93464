"""What this host has to train with, as a table for people, and what is wrong."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gsnr_tf.launch import probe

_INSTALL = "gsnr-tf install-horovod"
_TENSORFLOWS = ("tensorflow", "tensorflow_cpu")
# Settings that change how a job runs, and are forgotten easily.
_SETTINGS = re.compile(
    "CUDA_VISIBLE_DEVICES|OMP_NUM_THREADS|KERAS_|HOROVOD_|NCCL_|"
    "TF_(NUM|CPP|ENABLE|USE|XLA|FORCE|GPU|DETERMINISTIC)"
)


def facts():
    """What `sections` shows and `problems` judges, a dict.

    Nothing of Horovod is needed: `horovod_error` says what keeps it from working.
    """
    import tensorflow as tf

    from gsnr_tf.comm import horovod

    found = probe.report()
    try:
        built_with, error = horovod.built_with(), None
    except ImportError as failure:
        built_with, error = [], str(failure)
    return {
        **found,
        "versions": {**found["versions"], "NumPy": probe.version("numpy")},
        "horovod_built_with": built_with,
        "horovod_error": error,
        "horovodrun": Path(sys.executable).with_name("horovodrun").exists(),
        "ssh": shutil.which("ssh"),
        "gpus": _gpus_of_driver(),
        "visible_gpus": len(tf.config.list_physical_devices("GPU")),
        "cores": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "tensorflows": [name for name in _TENSORFLOWS if probe.version(name)],
        "unmet": _unmet_requirements(),
        "settings": {name: value for name, value in os.environ.items() if _SETTINGS.match(name)},
    }


def _gpus_of_driver():
    """Names of the GPUs that nvidia-smi lists."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return ran.stdout.split("\n")[:-1] if ran.returncode == 0 else []


def _unmet_requirements():
    """What TensorFlow and this package ask of Keras and NumPy, and do not get."""
    unmet = []
    for name in (*_TENSORFLOWS, "gsnr_tf"):
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, needed):
            found = probe.version(requirement.name)
            if (
                requirement.name in ("keras", "numpy", *_TENSORFLOWS)
                and not requirement.marker
                and found
                and not requirement.specifier.contains(found, prereleases=True)
            ):
                unmet.append(f"{name} needs {requirement}, and {found} is installed")
    return unmet


def problems(facts):
    """Pairs of what is wrong and what to do about it."""
    versions, found = facts["versions"], []
    if versions["Horovod"] is None:
        found.append(("Horovod is missing: several ranks cannot train.", _INSTALL))
    elif facts["horovod_built_for"] is None:
        found.append(
            (
                "Horovod was built without TensorFlow operations.",
                f"{_INSTALL} --rebuild",
            )
        )
    elif facts["horovod_built_for"] != versions["TensorFlow"]:
        what = f"Horovod was built for TensorFlow {facts['horovod_built_for']}."
        found.append((what, f"{_INSTALL} --rebuild"))
    elif facts["horovod_error"]:
        found.append((facts["horovod_error"], f"{_INSTALL} --rebuild"))
    found += [(f"{unmet}.", "Install what it needs.") for unmet in facts["unmet"]]
    if len(facts["tensorflows"]) > 1:
        found.append(
            (
                "TensorFlow is there as two distributions with the same files: "
                f"{' and '.join(facts['tensorflows'])}.",
                "Uninstall both, and install the one you want.",
            )
        )
    if facts["settings"].get("TF_USE_LEGACY_KERAS", "").lower() in ("1", "true"):
        found.append(
            (
                "TF_USE_LEGACY_KERAS is set: tf.keras is Keras 2, whose models these "
                "optimizers cannot train.",
                "unset TF_USE_LEGACY_KERAS",
            )
        )
    hidden = facts["settings"].get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if facts["gpus"] and not facts["visible_gpus"] and not hidden:
        found.append(
            (
                "There are GPUs, and TensorFlow sees none.",
                "pip install 'tensorflow[and-cuda]', and look at its messages",
            )
        )
    if facts["visible_gpus"] and versions["Horovod"] and not facts["horovod_error"]:
        if "nccl" not in facts["horovod_built_with"]:
            found.append(
                (
                    "Horovod was built without NCCL: gradients go by way of the CPU.",
                    f"{_INSTALL} --gpu --rebuild",
                )
            )
        found.append(
            (
                "Keras compiles train steps for GPUs by XLA, which has no kernels for "
                "Horovod's collectives.",
                "model.compile(..., jit_compile=False), or use "
                "BroadcastGlobalVariablesCallback, which switches it off",
            )
        )
    if facts["ssh"] is None:
        found.append(
            (
                "There is no ssh: jobs are confined to this host.",
                "Install openssh-client.",
            )
        )
    return found


def sections(facts):
    """Pairs of a heading and a dict of names and values, all strings."""
    built_for = facts["horovod_built_for"]
    yield (
        "Versions",
        {name: value or "none" for name, value in facts["versions"].items()},
    )
    yield (
        "Horovod",
        {
            "TensorFlow operations": f"for {built_for}" if built_for else "none",
            "built with": ", ".join(facts["horovod_built_with"]) or "nothing that can be used",
        },
    )
    yield (
        "Devices",
        {
            "GPUs": ", ".join(facts["gpus"]) or "none",
            "seen by TensorFlow": str(facts["visible_gpus"]),
            "CPU cores": str(facts["cores"]),
            "memory": f"{facts['memory'] / 2**30:.1f} GiB",
        },
    )
    yield (
        "Launcher",
        {
            "Python": sys.executable,
            "horovodrun": "beside it" if facts["horovodrun"] else "none",
            "ssh": facts["ssh"] or "none",
            "platform": platform.platform(),
        },
    )
    yield "Environment variables", facts["settings"] or {"of note": "none"}


def show(facts, file=None):
    """Prints the table, then the problems; 80 columns where it is not a terminal."""
    console = Console(file=file, highlight=False)
    for heading, rows in sections(facts):
        console.print(heading, style="bold")
        grid = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1))
        grid.add_column(min_width=24)
        grid.add_column(overflow="fold")
        for name, value in rows.items():
            grid.add_row(Text(f"  {name}"), Text(value))
        console.print(grid)
    console.print("Problems", style="bold")
    known = problems(facts)
    for what, remedy in known:
        console.print(Padding(Text(what, style="red"), (0, 0, 0, 2)))
        console.print(Padding(Text(remedy), (0, 0, 0, 4)))
    if not known:
        console.print("  none that is known", style="green")
