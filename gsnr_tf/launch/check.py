"""Whether hosts can train together: asked of each of them before a job starts."""

import concurrent.futures
import io
import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gsnr_tf.launch import probe
from gsnr_tf.launch.hosts import CannotStart

_SECONDS = 60
_CONNECT_SECONDS = 15
_MANY = 64  # connections at once
_INSTALL = "gsnr-tf install-horovod"


def is_local(host):
    """Whether Horovod starts the ranks of `host` here, rather than through ssh."""
    import psutil  # comes with Horovod

    try:
        address = socket.gethostbyname(host)
    except OSError:
        return False
    return any(
        interface.address == address
        for interfaces in psutil.net_if_addrs().values()
        for interface in interfaces
    )


def ssh(host, port=None, identity=None):
    """The command that reaches a host, with the options that horovodrun gives it."""
    command = ["ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]
    command += ["-o", f"ConnectTimeout={_CONNECT_SECONDS}"]
    if port:
        command += ["-p", str(port)]
    if identity:
        command += ["-i", str(identity)]
    return [*command, host]


def ask(host, paths, port=None, identity=None):
    """The report of one host; a string where there is none, which says why."""
    if is_local(host):
        return probe.report(paths)
    # As the ranks will be started: by the same path, with the same search paths.
    settings = [f"{k}={os.environ[k]}" for k in ("PATH", "PYTHONPATH") if k in os.environ]
    remote = shlex.join(["env", *settings, sys.executable, "-", *paths])
    try:
        ran = subprocess.run(
            [*ssh(host, port, identity), remote],
            input=Path(probe.__file__).read_text(encoding="utf-8"),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
    except FileNotFoundError:
        return "there is no ssh on this machine"
    except subprocess.TimeoutExpired:
        return f"no answer in {_SECONDS} seconds"
    if ran.returncode == 255:
        return f"ssh: {_last_line(ran.stderr)}"
    if ran.returncode in (126, 127):
        return f"{sys.executable} cannot be run there; ranks use the same path everywhere"
    try:
        # Shells greet, some also those who are no people.
        return json.loads(ran.stdout[ran.stdout.index("{") :])
    except ValueError:
        return f"exit code {ran.returncode}: {_last_line(ran.stderr or ran.stdout)}"


def _last_line(text):
    return (text.strip().splitlines() or ["no message"])[-1]


def check(hosts, paths=(), port=None, identity=None):
    """Asks all hosts at once, and returns their reports if they can train together.

    Args:
        hosts: Names of hosts.
        paths: Absolute paths of files that each host must have.
        port, identity: What ssh is told with -p and -i.

    Raises:
        CannotStart: A host does not answer, lacks something, or differs from others.
    """
    with concurrent.futures.ThreadPoolExecutor(min(_MANY, len(hosts))) as pool:
        answers = pool.map(lambda host: ask(host, paths, port, identity), hosts)
        reports = dict(zip(hosts, answers))
    silent = {h: r for h, r in reports.items() if isinstance(r, str)}
    if silent:
        lines = [f"  {host}: {why}" for host, why in silent.items()]
        raise CannotStart("\n".join(["These hosts cannot be reached:", *lines]))
    problems = [f"  {host}: {p}" for host, r in reports.items() for p in lacking(r)]
    if not all(map(is_local, hosts)):
        problems += [f"  {h}: {p}" for h, r in reports.items() for p in _unnamed(h, r)]
    versions = {host: report["versions"] for host, report in reports.items()}
    if len({tuple(v.values()) for v in versions.values()}) > 1:
        problems = [
            "  They must have the same versions:",
            "",
            table(versions),
            *problems,
        ]
    if problems:
        raise CannotStart("\n".join(["These hosts cannot train:", *problems]))
    return reports


def _unnamed(host, report):
    """What keeps others from finding a host.

    Whatever interface it was told, Horovod connects the ranks of a process set by the
    address of each host's own name, and Debian's installer writes that down as
    127.0.1.1.
    """
    address = report["address"]
    if address is None or address.startswith("127."):
        yield (
            f"its own name, {report['name']}, stands for {address or 'no address'} "
            "there, which Horovod would tell to the other hosts; write its true address "
            "beside the name in /etc/hosts"
        )


def lacking(report):
    """What keeps a host from training, a sentence each."""
    versions, built_for = report["versions"], report["horovod_built_for"]
    problems = [f"{path} is not there" for path in report["missing"]]
    problems += [f"{name} is not installed" for name, v in versions.items() if v is None]
    if versions["Horovod"] and built_for is None:
        problems.append(f"Horovod was built without TensorFlow; build it with `{_INSTALL}`")
    elif versions["Horovod"] and versions["TensorFlow"] not in (None, built_for):
        problems.append(
            f"Horovod was built for TensorFlow {built_for}, and "
            f"{versions['TensorFlow']} is installed; build it again with `{_INSTALL}`"
        )
    return problems


def table(versions):
    """Who has what, for people: a row for each set of hosts that are alike.

    Args:
        versions: Dict of a host's name and a dict of names and versions.
    """
    groups: dict[tuple, list] = {}
    for host, own in versions.items():
        groups.setdefault(tuple(own.values()), []).append(host)
    grid = Table(box=None, pad_edge=False)
    grid.add_column("hosts", overflow="fold")
    first = next(iter(versions.values()))
    for index, name in enumerate(first):
        alike = len({values[index] for values in groups}) == 1
        grid.add_column(name if alike else f"{name} (!)", overflow="fold")
    for values, hosts in groups.items():
        # Text, not markup.
        grid.add_row(*(Text(cell or "none") for cell in (", ".join(hosts), *values)))
    text = io.StringIO()
    Console(file=text, width=80).print(grid)
    return text.getvalue()
