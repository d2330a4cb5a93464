"""A network of one's own to experiment in, which the kernel clears away by itself.

The network, the processes and the names of namespaces live in namespaces that end with
the last process in them. Nothing of the machine's own network is touched, and there is
nothing to clean up, however the experiment ends.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import threading

_NAMESPACES = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
# Lines of a log that are shown where it failed.
_SHOWN = 60
# Names of network namespaces are kept in /run/netns, also of those in here.
_ENTER = 'mount -t tmpfs none /run && exec "$@"'

# Tries what is needed, each once.
_PROBE = """
ip link add probe0 type veth peer name probe1
ip link add probe2 type bridge
ip netns add probe
tc qdisc add dev probe0 root tbf rate 1gbit burst 128kb limit 256kb
"""


def inside(command):
    """The command that runs `command`, a list of words, in namespaces of its own."""
    # Without root: root of a user namespace, where the machine permits it.
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, *_NAMESPACES, "sh", "-c", _ENTER, "sh", *command]


def why_not():
    """Why this machine cannot make such a network, one sentence; `None` if it can."""
    missing = [name for name in ("unshare", "ip", "tc") if not shutil.which(name)]
    if missing:
        return (
            f"There is no `{missing[0]}` here (Debian and its kin: apt install "
            "util-linux iproute2)."
        )
    probe = subprocess.run(
        inside(["sh", "-ec", _PROBE]), capture_output=True, text=True, timeout=30
    )
    if probe.returncode == 0:
        return None
    said = (probe.stderr.strip().splitlines() or ["no message"])[0]
    return (
        "This machine does not let us make network namespaces and shape their links "
        f"({said}); try as root."
    )


def lines_of(module, arguments):
    """Runs `python -m module` in a sandbox; yields the lines that it prints.

    The module should call `end_with_parent`, for the case that this process is killed.

    Raises:
        RuntimeError: It failed; the message ends with what it wrote to standard error.
    """
    # The log is a file: a pipe that nobody empties would hold the module up.
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(
            inside([sys.executable, "-m", module, *arguments]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            # An interrupt from the keyboard is for this process: it ends the others.
            start_new_session=True,
        ) as job,
    ):
        try:
            yield from job.stdout
            if job.wait():
                log.seek(0)
                end = "".join(log.readlines()[-_SHOWN:])
                raise RuntimeError(f"{module} ended with code {job.returncode}:\n{end}")
        finally:
            # `unshare` takes all that runs in its namespaces along.
            job.kill()


def end_with_parent():
    """Ends this process, and so its sandbox, when the one that started it is gone."""

    def wait():
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
