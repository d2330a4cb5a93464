"""Which hosts a job runs on, and how many ranks each has room for."""

import re
import subprocess
from pathlib import Path

_NAME = re.compile(r"[\w.-]+")
_DISCOVERY_SECONDS = 30
# Of one host. More is a slip of the pen, for which Horovod would make a plan in memory.
MOST_SLOTS = 1024


class CannotStart(Exception):
    """The job cannot start as it was described. The message says why, for people."""


def _slots(text, where):
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= MOST_SLOTS:
        shown = text if len(text) <= 40 else f"{text[:40]}…"
        raise CannotStart(
            f"{where} has no number of ranks from 1 to {MOST_SLOTS:,}. Received: {shown!r}"
        )
    return int(text)


def _check_address(text, where):
    """Says of addresses that Horovod's launcher cannot take what to write instead."""
    user, at, rest = text.partition("@")
    if at:
        host = re.split(r"[:\s]", rest, maxsplit=1)[0]
        raise CannotStart(
            f"{where} has a user's name, {user!r}, and hosts are named without one. Write the"
            f" user into ~/.ssh/config, as `Host {host}` and `User {user}`, and here {rest}."
        )
    if text.startswith("[") or text.count(":") > 1:
        raise CannotStart(
            f"{where} is an IPv6 address, and Horovod connects by IPv4. Write a name of the host,"
            f" or its IPv4 address. Received: {text!r}"
        )


def _entry(text, where, default=None):
    """`(name, slots)` from `h1:4`, `h1 slots=4`, or `h1` where there is a default."""
    _check_address(text.strip(), where)
    name, *rest = re.split(r"[:\s]+", text.strip(), maxsplit=1)
    if not _NAME.fullmatch(name):
        raise CannotStart(f"{where} is no name of a host. Received: {name!r}")
    if rest:
        found = re.fullmatch(r"(?:slots\s*=\s*)?(\S+)(?:\s+max[-_]slots\s*=\s*\d+)?", rest[0])
        if not found:
            raise CannotStart(
                f"{where} must be like `{name} slots=4` or `{name}:4`. Received: {text!r}"
            )
        return name, _slots(found.group(1), where)
    if default is None:
        raise CannotStart(
            f"{where} does not say how many ranks {name} has room for. Write {name}:4."
        )
    return name, default


def _gathered(entries):
    hosts = {}
    for name, slots in entries:
        if name in hosts:
            raise CannotStart(f"The host {name} is named twice.")
        hosts[name] = slots
    return hosts


def parse(text):
    """Hosts from `h1:4,h2:4`.

    Returns:
        Dict of a host's name and its number of ranks, in the order given.

    Raises:
        CannotStart: Some part of `text` is something else.
    """
    return _gathered(_entry(part, "--hosts") for part in text.split(","))


def parse_file(path):
    """Hosts from a file with a line for each: `h1 slots=4` or `h1:4`.

    Empty lines and what follows a `#` are passed over. See `parse`.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise CannotStart(f"The host file {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise CannotStart(f"The host file {path!r} cannot be read: {error}.") from None
    entries = []
    for number, line in enumerate(lines, start=1):
        line = line.partition("#")[0].strip()
        if line:
            entries.append(_entry(line, f"Line {number} of {path}"))
    if not entries:
        raise CannotStart(f"The host file {path} names no host.")
    return _gathered(entries)


def discover(script, default):
    """Hosts that a discovery script prints now, one on a line: `h1:4`, or `h1`.

    Args:
        script: Path of the program.
        default: Int, ranks for a host that comes without a number, or `None`.

    Raises:
        CannotStart: The script is missing, fails, or prints something else.
    """
    try:
        ran = subprocess.run(
            [str(Path(script).resolve())],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_DISCOVERY_SECONDS,
        )
    except OSError as error:
        raise CannotStart(
            f"The discovery script {script} cannot be run: {error.strerror}. It must "
            "be an executable file, with a first line such as #!/bin/sh."
        ) from None
    except subprocess.TimeoutExpired:
        raise CannotStart(
            f"The discovery script {script} did not end in {_DISCOVERY_SECONDS} "
            "seconds. Horovod calls it every second."
        ) from None
    if ran.returncode:
        raise CannotStart(
            f"The discovery script {script} failed with exit code {ran.returncode}:\n"
            f"{ran.stderr.strip()}"
        )
    lines = [line.strip() for line in ran.stdout.splitlines() if line.strip()]
    return _gathered(_entry(line, f"The output of {script}", default) for line in lines)
