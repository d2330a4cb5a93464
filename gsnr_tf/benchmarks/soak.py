"""Trains while it does to the job what bad days do, and counts what that costs.

    python -m gsnr_tf.benchmarks.soak FOLDER --minutes 20 --seed 0

Run by `gsnr-tf bench soak`, in a PID namespace whose processes the kernel ends with it
where that can be had, with a small disk mounted at FOLDER/disk.
"""

import argparse
import collections
import contextlib
import dataclasses
import random
import statistics
import sys
import time
from pathlib import Path

import rich
from rich.table import Table

from gsnr_tf.benchmarks import soak_job
from gsnr_tf.benchmarks.soak_faults import FAULTS, named
from gsnr_tf.benchmarks.soak_job import Hangs, Job

# Faults that one job goes through, and updates that it makes between two of them.
_FAULTS_A_JOB, _BETWEEN = 5, (6, 16)


@dataclasses.dataclass
class Tally:
    """What became of the faults of one kind."""

    injected: int = 0
    survived: int = 0
    lost: int = 0
    seconds: list = dataclasses.field(default_factory=list)


class Deck:
    """Deals faults of a family at random, all of them before any comes again."""

    def __init__(self, faults, rng):
        self._faults, self._rng, self._left = faults, rng, []

    def deal(self, number):
        while len(self._left) < number:
            self._left += self._rng.sample(self._faults, len(self._faults))
        dealt, self._left = self._left[:number], self._left[number:]
        return dealt


class Soak:
    """Jobs under the engine and under elastic in turns, until time is over.

    Args:
        folder: `pathlib.Path`.
        seed: Int, of which faults come when, to which rank.
        faults: List of `Fault`s to choose from.
    """

    def __init__(self, folder, seed, faults=FAULTS):
        self._folder, self._rng = folder, random.Random(seed)
        self._families = [
            family
            for family in ("engine", "elastic")
            if any(fault.family == family for fault in faults)
        ]
        self._decks = {
            family: Deck([f for f in faults if f.family == family], self._rng)
            for family in self._families
        }
        # What jobs have noted of their updates, by family and sharding.
        self._noted = collections.defaultdict(list)
        self.tallies = {(f.family, f.name): Tally() for f in faults}
        self.jobs = self.compared = self.wrong = 0
        self.troubles = []

    def run(self, deadline):
        """Job after job, until `time.monotonic()` is past the deadline."""
        turn = 0
        while time.monotonic() < deadline:
            family = self._families[turn % len(self._families)]
            turn += 1
            faults = self._decks[family].deal(_FAULTS_A_JOB)
            self.job(family, self._rng.choice(["none", "slices"]), faults, deadline)

    def job(self, family, sharding, faults, deadline=float("inf")):
        """One job, disturbed by these faults one after the other."""
        self.jobs += 1
        folder = self._folder / f"job-{self.jobs}"
        folder.mkdir()
        # The small disk is one for all jobs.
        disk = self._folder / "disk"
        disk.mkdir(exist_ok=True)
        for path in disk.iterdir():
            soak_job.remove(path)
        (folder / "disk").symlink_to(disk, target_is_directory=True)
        job = Job(folder, family, sharding)
        print(f"Job {self.jobs}: {family}, sharding={sharding}", flush=True)
        try:
            job.start()
            for fault in faults:
                if time.monotonic() > deadline:
                    break
                self._befall(job, fault)
            job.finish()
        except Hangs as why:
            # The output goes with the folder.
            self.troubles.append(f"job {self.jobs}: {why}")
            print(f"  {why}\n{job.output()[-6000:]}", flush=True)
        finally:
            job.end()
            self._noted[family, sharding].append(job.updates())

    def compare(self):
        """Trains undisturbed as far as the jobs came, all kinds at once, and compares."""
        with contextlib.ExitStack() as stack:
            runs = {}
            for (family, sharding), jobs in self._noted.items():
                last = max([r["update"] for records in jobs for r in records], default=0)
                if last:
                    folder = self._folder / f"undisturbed-{family}-{sharding}"
                    run = soak_job.undisturbed(folder, family, sharding, last)
                    runs[family, sharding] = stack.enter_context(run)
            for key, weights in runs.items():
                expected = weights()
                for records in self._noted[key]:
                    self.compared += len(records)
                    self.wrong += soak_job.wrong(records, expected)

    def _befall(self, job, fault):
        between = self._rng.randint(*_BETWEEN)
        job.wait_for_updates(between, time.time(), "it does not train")
        tally = self.tallies[fault.family, fault.name]
        tally.injected += 1
        seconds, lost = fault.befall(job, self._rng)
        tally.survived += 1
        tally.lost += lost
        if seconds is not None:
            tally.seconds.append(seconds)
        told = "" if seconds is None else f", seen after {seconds:.1f} s"
        print(f"  {fault.name}{told}, {lost} updates lost", flush=True)

    @property
    def passed(self):
        """Whether all was survived, and nothing was wrong."""
        survived = all(t.survived == t.injected for t in self.tallies.values())
        return survived and not self.wrong and not self.troubles and self.compared > 0

    def table(self, title):
        """A `rich` table of 80 columns."""
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        table.add_column("fault", no_wrap=True)
        for heading in ("times", "survived", "updates\nlost", "seconds,\nmedian", "worst"):
            table.add_column(heading, justify="right")
        for family in self._families:
            table.add_row(f"[bold]{family}")
            for (own, name), tally in self.tallies.items():
                if own == family and tally.injected:
                    table.add_row(f"  {name}", *_cells(tally))
        table.add_row("[bold]all", *_cells(_sum(self.tallies.values())))
        return table


def _cells(tally):
    seconds = tally.seconds
    return (
        str(tally.injected),
        str(tally.survived),
        str(tally.lost),
        f"{statistics.median(seconds):.1f}" if seconds else "–",
        f"{max(seconds):.1f}" if seconds else "–",
    )


def _sum(tallies):
    whole = Tally()
    for tally in tallies:
        whole.injected += tally.injected
        whole.survived += tally.survived
        whole.lost += tally.lost
        whole.seconds += tally.seconds
    return whole


def main(arguments=None):
    """Returns 0 where all was survived and right, else 1."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    args = parser.parse_args(arguments)
    began = time.monotonic()
    soak = Soak(args.folder, args.seed, named(args.only))
    mounted = (args.folder / "disk").is_mount()
    disk = "a small tmpfs" if mounted else "files that may not grow"
    print(f"Seed {args.seed}; a full disk is {disk}.", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        soak.run(began + 60 * args.minutes)
        print("Training undisturbed, to compare...", flush=True)
        soak.compare()
    minutes = (time.monotonic() - began) / 60
    rich.print(soak.table(f"{soak.jobs} jobs in {minutes:.0f} minutes, seed {args.seed}"))
    print(f"Weights compared after {soak.compared:,} updates: {soak.wrong} wrong results.")
    for trouble in soak.troubles:
        print(trouble)
    return 0 if soak.passed else 1


if __name__ == "__main__":
    sys.exit(main())
