"""What a soak does to a job, and how it sees that the job has noticed and goes on."""

import dataclasses
import re
import signal
import time
from collections.abc import Callable

from gsnr_tf.benchmarks.soak_job import send
from gsnr_tf.resilience.checkpoint_files import STATE, tags

# Seconds of a short pause, and of being slowed.
_SHORT, _SLOW = 2.0, 3.0
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Fault:
    """A way to disturb a job.

    Attributes:
        name: For people.
        family: "engine" or "elastic".
        disturb: Function of the job and a `random.Random`; returns the function that
            mends what does not mend itself, or `None`.
        sign: Regular expression of what the job prints when it has noticed, or a
            function of the job and the time that tells whether it has; `None` where
            there is nothing to notice.
        restarts: Whether all ranks begin anew, or meet anew.
    """

    name: str
    family: str
    disturb: Callable
    sign: str | Callable | None = None
    restarts: bool = True

    def befall(self, job, rng):
        """Disturbs the job, and waits until it trains as before.

        Returns:
            `(seconds, lost)`: to the sign, `None` where there is none; updates that
            were made twice.

        Raises:
            Hangs: It does not notice, or does not go on.
        """
        began, said = time.time(), len(job.output())
        mend = self.disturb(job, rng)
        seconds = None
        if self.sign is not None:
            sign = self.sign
            seen = (
                (lambda: job.said(sign, said))
                if isinstance(sign, str)
                else lambda: sign(job, began)
            )
            seconds = job.wait_until(seen, f"no sign after '{self.name}'") - began
        mended = time.time()
        if mend:
            mend()
        if self.restarts:
            job.wait_until(lambda: _begins(job, began), f"no new beginning after '{self.name}'")
        job.wait_for_updates(3, mended, f"no update after '{self.name}'")
        return seconds, job.lost(began)


def _begins(job, since):
    return any(r["event"] == "begins" and r["time"] > since for r in job.records())


def _one(job, rng):
    """The process of some rank."""
    return rng.choice(sorted(job.pids().items()))[1]


# ---- processes --------------------------------------------------------------------


def _kill(job, rng):
    send(_one(job, rng), signal.SIGKILL)


def _kill_all(job, rng):
    for pid in job.pids().values():
        send(pid, signal.SIGKILL)


def _tell_to_end(job, rng):
    send(_one(job, rng), signal.SIGTERM)


def _raise(job, rng):
    job.order(f"raise-{_one(job, rng)}")


def _pause(job, rng):
    send(_one(job, rng), signal.SIGSTOP)


def _pause_shortly(job, rng):
    pid = _one(job, rng)
    send(pid, signal.SIGSTOP)
    time.sleep(_SHORT)
    send(pid, signal.SIGCONT)


def _slow(job, rng):
    pid, until = _one(job, rng), time.monotonic() + _SLOW
    while time.monotonic() < until:
        for number in (signal.SIGSTOP, signal.SIGCONT):
            send(pid, number)
            time.sleep(0.05)


def _drop(job, rng):
    job.order(f"drop-{_one(job, rng)}")


# ---- checkpoints ------------------------------------------------------------------


def _fill_disk(job, rng):
    filler = job.folder / "disk" / "filler"
    if not filler.parent.is_mount():
        # No file of the ranks may grow, which is all that can be had without root.
        job.order("full")
        return (job.folder / "full").unlink
    with filler.open("wb") as file:
        try:
            while True:
                file.write(bytes(_CHUNK))
                file.flush()
        except OSError:
            pass
    return filler.unlink


def _damaging(damage):
    """A fault: all ranks die, and the newest checkpoint is damaged before they return.

    A person then takes the one before it.
    """

    def disturb(job, rng):
        _kill_all(job, rng)
        # Those of a rank that was told to end have other names.
        *_, previous, newest = sorted(tags(job.saved), key=_number)
        whole = damage(job.saved, newest, rng)

        def mend():
            (job.saved / "latest").write_text((newest if whole else previous) + "\n")

        return mend

    return disturb


def _number(tag):
    return int(re.search(r"\d+$", tag)[0])


def _cut(folder, tag, rng):
    path = folder / tag / STATE
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(rng.randrange(size))


def _alter(folder, tag, rng):
    path = rng.choice(sorted((folder / tag).iterdir()))
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def _remove_latest(folder, tag, rng):
    (folder / "latest").unlink()
    return True


# ---- hosts ------------------------------------------------------------------------


def _no_hosts(job, rng):
    job.set_hosts(some=False)

    def mend():
        time.sleep(_SHORT)
        job.set_hosts()

    return mend


def _size(job):
    """How many ranks made the last update."""
    return job.updates()[-1]["size"]


def _host_comes_and_goes(job, rng):
    job.set_hosts(another=True)
    job.wait_until(lambda: _size(job) == 3, "another host is not taken in")

    def mend():
        job.set_hosts()
        job.wait_until(lambda: _size(job) < 3, "a host does not leave")

    return mend


_REFUSED = r"CheckpointError"
_FAILED = r"\nRank \d failed"
_LOST = r"background loop uncaught exception|This process has failed"
_ENDED = r"This process has failed: "

FAULTS = [
    Fault("a rank is killed", "engine", _kill, _FAILED + ".*signal 9"),
    Fault("a rank is told to end", "engine", _tell_to_end, "have saved"),
    Fault("a rank raises", "engine", _raise, "AskedToFail"),
    Fault("a rank is paused for good", "engine", _pause, "does not answer"),
    Fault("a rank is paused 2 s", "engine", _pause_shortly, restarts=False),
    Fault("a rank is slowed", "engine", _slow, restarts=False),
    Fault("connections are dropped", "engine", _drop, _FAILED),
    Fault("the disk is full", "engine", _fill_disk, _REFUSED),
    Fault("a checkpoint is cut", "engine", _damaging(_cut), _REFUSED),
    Fault("a checkpoint is altered", "engine", _damaging(_alter), _REFUSED),
    Fault("`latest` is gone", "engine", _damaging(_remove_latest), _REFUSED),
    Fault("a rank is killed", "elastic", _kill, _ENDED + ".*signal 9"),
    Fault("all ranks are killed", "elastic", _kill_all, "from the last commit on disk"),
    Fault("a rank raises", "elastic", _raise, "AskedToFail"),
    Fault("a rank is paused for good", "elastic", _pause, "does not answer"),
    Fault("a rank is paused 2 s", "elastic", _pause_shortly, restarts=False),
    Fault("a rank is slowed", "elastic", _slow, restarts=False),
    Fault("connections are dropped", "elastic", _drop, _LOST),
    Fault("no hosts for a while", "elastic", _no_hosts, "Waiting for hosts"),
    Fault("a host comes and goes", "elastic", _host_comes_and_goes),
    Fault("the disk is full", "elastic", _fill_disk, "in memory alone", restarts=False),
    Fault("a commit is cut", "elastic", _damaging(_cut), _REFUSED),
    Fault("a commit is altered", "elastic", _damaging(_alter), _REFUSED),
]


def named(text):
    """The faults whose name has `text` in it; all where it is empty."""
    return [fault for fault in FAULTS if re.search(text, f"{fault.family}: {fault.name}")]
