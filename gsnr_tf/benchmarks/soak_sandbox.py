"""Where a soak runs: it leaves no process and no file behind, however it ends."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

# The kernel ends all processes of a PID namespace with the first, and takes back what
# was mounted there.
_NAMESPACES = ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
# The shell stays, as the one that buries orphans.
_ENTER = 'mount -t tmpfs -o size=32m none "$0" && "$@"; exit $?'


def run(arguments):
    """Runs `python -m gsnr_tf.benchmarks.soak FOLDER` with these; returns its exit code.

    In namespaces of its own with a small disk of its own, where this machine permits
    that; else as it is.
    """
    with tempfile.TemporaryDirectory(prefix="gsnr_tf-soak-") as folder, _sigterm_ends():
        disk, temporary = Path(folder, "disk"), Path(folder, "tmp")
        disk.mkdir()
        temporary.mkdir()
        command = [sys.executable, "-m", "gsnr_tf.benchmarks.soak", folder, *arguments]
        if _possible(disk):
            command = _inside(disk, command)
        # A killed rank cannot take away the files that TensorFlow made for it.
        with subprocess.Popen(command, env={**os.environ, "TMPDIR": str(temporary)}) as process:
            try:
                return process.wait()
            except KeyboardInterrupt:
                # The soak has got it as well, and shows what it has.
                return process.wait()
            finally:
                process.terminate()


def _inside(disk, command):
    # Without root: root of a user namespace.
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, *_NAMESPACES, "sh", "-c", _ENTER, str(disk), *command]


def _possible(disk):
    if not shutil.which("unshare"):
        return False
    tried = subprocess.run(_inside(disk, ["true"]), capture_output=True, timeout=30)
    return tried.returncode == 0


@contextlib.contextmanager
def _sigterm_ends():
    """SIGTERM ends this process in good order."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
