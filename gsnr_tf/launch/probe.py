"""What a host has, as JSON on the standard output: versions, and Horovod's build.

    python probe.py PATH ...

Needs nothing but Python, and imports nothing that it tells about: it is sent to hosts
through ssh, and must answer where TensorFlow is broken or not there.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import socket
import sys
import zlib


def version(*names):
    """Version of the first of the distributions that is installed, or `None`."""
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return None


def folder(package):
    """Where a package lies, without importing it, or `None`."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    places = list(spec.submodule_search_locations or []) if spec else []
    return places[0] if places else None


def own_version():
    """gsnr_tf's version and a checksum of its sources, or `None`.

    Checkouts that differ bear the same version until the next release.
    """
    place = folder("gsnr_tf")
    if place is None:
        return None
    checksum = 0
    for path, folders, files in os.walk(place):
        folders.sort()
        for name in sorted(files):
            if name.endswith(".py"):
                with open(os.path.join(path, name), "rb") as source:
                    checksum = zlib.crc32(source.read(), checksum)
    with open(os.path.join(place, "_version.py"), encoding="utf-8") as source:
        found = re.search(r'^__version__ = "(.+)"', source.read(), re.MULTILINE)
    return f"{found.group(1) if found else '?'} ({checksum:08x})"


def horovod_built_for():
    """The version of TensorFlow that Horovod was compiled for, or `None`."""
    place = folder("horovod")
    if place is None:
        return None
    files = os.listdir(os.path.join(place, "tensorflow"))
    if not any(re.match(r"mpi_lib\..*so$", name) for name in files):
        return None
    with open(os.path.join(place, "metadata.json"), encoding="utf-8") as metadata:
        return json.load(metadata).get("tensorflow")


def own_address():
    """The address that this host's own name stands for here, or `None`."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return None


def report(paths=()):
    """All of it.

    Args:
        paths: Files that a job needs; `missing` names those that are not there.
    """
    return {
        "versions": {
            "Python": platform.python_version(),
            "TensorFlow": version("tensorflow_cpu", "tensorflow", "tensorflow_rocm", "tf_nightly"),
            "Keras": version("keras"),
            "Horovod": version("horovod"),
            "gsnr_tf": own_version(),
        },
        "horovod_built_for": horovod_built_for(),
        "name": socket.gethostname(),
        "address": own_address(),
        "missing": [path for path in paths if not os.path.exists(path)],
    }


if __name__ == "__main__":
    json.dump(report(sys.argv[1:]), sys.stdout)
