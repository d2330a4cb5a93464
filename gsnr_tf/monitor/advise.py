"""From a recorded run to the batch, the workers and the learning rate of the next."""

import math
from typing import NamedTuple

import numpy as np

from gsnr_tf.monitor.estimate import Estimate, noise_of
from gsnr_tf.monitor.run import DamagedRun
from gsnr_tf.rules import registry
from gsnr_tf.stats import noise_scale

# Less than this, and the interval itself is not to be trusted.
_LEAST_RECORDS = 24
# The ends of the interval may differ by this factor: to tell a batch from its double.
_WIDEST = 4.0
# What is paid for speed: this many times the worker-seconds of the same training now.
# A training at the critical batch pays twice the least.
DEAREST = 1.5


class TooLittleData(ValueError):
    """The run does not say enough; the message says how much more it takes."""


class Layout(NamedTuple):
    """A way to make a batch, and what it takes compared with the run as it was.

    Attributes:
        batch: Int, examples of an update.
        workers, accumulation: Ints, workers and micro-batches of each.
        steps, examples: Floats, to the same loss, as ratios to the run.
        seconds: Float or `None`, to the same loss, as a ratio; `None` where the run
            has no times to tell it from.
        cost: Float or `None`, worker-seconds as a ratio.
    """

    batch: int
    workers: int
    accumulation: int
    steps: float
    examples: float
    seconds: float | None
    cost: float | None


class Advice(NamedTuple):
    """What to do next, and what it rests on.

    Attributes:
        critical: `Estimate` of the critical batch.
        now, best: `Layout` of the run, and the one to take.
        at_ends: Pair of `Layout`: what were best at either end of the interval.
        others: List of `Layout`: the fastest for each number of workers.
        largest: Int, the largest batch worth its examples: the power of two times the
            run's that comes nearest to the critical batch from below.
        learning_rate, rate_factor: Floats, and by what factor to scale the present one.
        rate_rule: String, why by this factor.
        times: Tuple of seconds (backward of a micro-batch, communication, update), or
            `None`.
        notes: List of strings: what else one should know.
    """

    critical: Estimate
    now: Layout
    best: Layout
    at_ends: tuple
    others: list
    largest: int
    learning_rate: float
    rate_factor: float
    rate_rule: str
    times: tuple | None
    notes: list


def advise(run, dearest=DEAREST):
    """`Advice` from a `Run`.

    Batches are weighed that are 2ⁱ times the run's, up to the critical batch: there a
    training takes twice the least steps and twice the least examples. Of all ways to
    share them between workers, the fastest is taken that costs at most `dearest` times
    the worker-seconds. A run without times can only be told the largest such batch.

    Args:
        run: `Run`.
        dearest: Float, at least 1.

    Raises:
        ValueError: `dearest` is below 1.
        DamagedRun: What the advice rests on is damaged.
        TooLittleData: The run is too short, or its noise too large, to tell a batch
            from its double.
    """
    if run.damaged_info:
        raise DamagedRun(f"{run.damage[0]} Advice takes all of it.")
    needed = ("batch/examples", "batch/accumulation", "batch/learning_rate")
    unknown = [name for name in needed if not np.isfinite(run.last(name, np.nan))]
    if unknown and not run.damage:
        raise TooLittleData(f"The run has no record of {', '.join(unknown)}.")
    if unknown:
        raise DamagedRun(f"{run.damage[0]} There is no record of {', '.join(unknown)} before.")
    if not dearest >= 1:
        raise ValueError(f"The cost must be at least 1. Received: {dearest}")
    critical = _sure_enough(run)
    weigh = _Weighing(run, critical.value, dearest)
    now, best = weigh.now(), weigh.best()
    factor, rule = _rate(run, now.batch, best.batch)
    return Advice(
        critical,
        now,
        best,
        tuple(_Weighing(run, end, dearest).best() for end in (critical.low, critical.high)),
        weigh.fastest_by_workers(),
        weigh.largest_parts() * weigh.micro,
        float(run.last("batch/learning_rate")),
        factor,
        rule,
        weigh.times,
        [*run.damage, *_notes(weigh, best)],
    )


def _sure_enough(run):
    every = run.info["every"]
    noise = noise_of(run)
    records = noise.records if noise else 0
    if records < _LEAST_RECORDS:
        raise TooLittleData(
            f"{records} record(s) are too few to advise from: it takes {_LEAST_RECORDS}. "
            f"Train {every * (_LEAST_RECORDS - records):,} more updates, or record more "
            f"often than every {every} updates."
        )
    critical = noise.critical_batch()
    if critical.factor > _WIDEST:
        raise TooLittleData(_too_wide(critical, noise, every))
    return critical


def _too_wide(critical, noise, every):
    made = noise_scale.progress(noise.resampled_trace, noise.resampled_signal, noise.batch).sum(1)
    centre = noise_scale.progress(noise.trace, noise.signal, noise.batch).sum()
    deviation, known = made.std(), math.isfinite(critical.high)
    if known:
        between = f"lies between {critical.low:,.0f} and {critical.high:,.0f} examples"
    else:
        # The largest signal that would not have been noticed.
        centre = max(centre, 0) + 1.64 * deviation
        between = f"is above {critical.low:,.0f} examples, and no more can be said"
    # The critical batch goes as 1/signal: 1.6/0.4 is the factor of 4 that is allowed.
    # The width falls as 1/√n.
    needed = noise.records * (1.64 * deviation / centre / 0.6) ** 2
    # Where even the order is unknown, less than as much again will hardly show it.
    more = max(math.ceil(needed) - noise.records, 8 if known else noise.records)
    return (
        f"The critical batch {between} (90 %, from {noise.records} records): too wide "
        f"to tell a batch from its double. {'About' if known else 'At least'} {more:,} "
        f"more records are needed: {every * more:,} updates at every={every}, fewer if "
        "recorded more often. Larger samples would say more at once."
    )


class _Weighing:
    """What a batch and its workers would take, at a given critical batch."""

    def __init__(self, run, critical, dearest):
        self.critical = critical
        self.dearest = dearest
        self.workers = run.info["workers"]
        self.accumulation = int(run.last("batch/accumulation"))
        self.batch = int(run.last("batch/examples"))
        self.micro = max(1, round(self.batch / (self.workers * self.accumulation)))
        self.times = _times(run)
        self.sound = run.sound_samples

    def now(self):
        return self.layout(self.workers, self.accumulation)

    def largest_parts(self):
        """How many micro-batches the largest batch worth its examples has."""
        parts = self.workers * self.accumulation
        while parts * 2 * self.micro <= self.critical:
            parts *= 2
        while parts * self.micro > self.critical and parts % 2 == 0 and parts > 2:
            parts //= 2
        return parts

    def candidates(self):
        """Every layout that is weighed: batches of as many samples as the
        estimator wants, if it is so now, and every number of workers that shares them
        evenly."""
        present = self.workers * self.accumulation
        largest = self.largest_parts()
        sizes = {largest}
        if self.times is not None:
            least = min(largest, present, self.sound)
            sizes |= {largest >> i for i in range(20) if largest % (1 << i) == 0}
            sizes = {parts for parts in sizes if parts >= least}
        for parts in sorted(sizes):
            for workers in self.possible_workers(parts):
                yield self.layout(workers, parts // workers)

    def possible_workers(self, parts):
        shared = math.gcd(self.workers, parts)
        if self.times is None or self.workers == 1:
            return [shared]  # what communication costs has not been measured
        found = {shared}
        for doubling in range(-10, 11):
            workers = self.workers * 2.0**doubling
            if workers >= 1 and workers == int(workers) and parts % int(workers) == 0:
                found.add(int(workers))
        return sorted(found)

    def best(self):
        """The fastest layout that is not too dear; smaller batches first."""
        weighed = list(self.candidates())
        if self.times is None:
            return weighed[-1]
        cheap = [o for o in weighed if o.cost <= self.dearest] or [self.now()]
        return min(cheap, key=lambda o: o.seconds)

    def fastest_by_workers(self):
        if self.times is None:
            return []
        found = {}
        for other in self.candidates():
            fastest = found.setdefault(other.workers, other)
            if other.seconds < fastest.seconds:
                found[other.workers] = other
        return [found[workers] for workers in sorted(found)]

    def layout(self, workers, accumulation):
        batch = self.micro * workers * accumulation
        steps = noise_scale.relative_steps(self.critical, batch, self.batch)
        examples = noise_scale.relative_examples(self.critical, batch, self.batch)
        seconds = cost = None
        if self.times is not None:
            now = self.seconds_of(self.workers, self.accumulation)
            seconds = steps * self.seconds_of(workers, accumulation) / now
            cost = seconds * workers / self.workers
        return Layout(batch, workers, accumulation, steps, examples, seconds, cost)

    def seconds_of(self, workers, accumulation):
        """Seconds of an update: a ring sends 2N(w − 1)/w numbers from each worker."""
        backward, communication, update = self.times
        if self.workers > 1:
            sent = (workers - 1) / workers
            communication *= sent / ((self.workers - 1) / self.workers)
        return accumulation * backward + communication + update


def _times(run):
    """Median seconds of backward, communication and update, of the later half."""
    found = []
    for name in ("backward", "communication", "update"):
        _, seconds = run.series(f"time/{name}")
        seconds = seconds[len(seconds) // 2 :]
        if not np.isfinite(seconds).any():
            return None
        found.append(float(np.nanmedian(seconds)))
    return tuple(found)


def _rate(run, batch, target):
    """By what the learning rate is multiplied, and why."""
    ratio = target / batch
    optimizer = run.info["optimizer"]
    row = registry.of(optimizer)
    if row is None or row.rate_scaling == registry.SQUARE_ROOT:
        return math.sqrt(ratio), f"square root of {ratio:g}, usual for {optimizer}"
    noise = noise_of(run)
    trace, signal = noise.trace[-1], noise.signal[-1]
    if ratio >= 1:
        gain = noise_scale.adascale_gain(trace, signal, batch, target)
    else:
        gain = 1 / noise_scale.adascale_gain(trace, signal, target, batch)
    return gain, f"AdaScale gain for {ratio:g} times the batch, at the run's last noise"


def _notes(weigh, best):
    parts = best.workers * best.accumulation
    if parts < weigh.sound:
        yield (
            f"This leaves {parts} samples to an update, and the multiplier wants "
            f"{weigh.sound}: smaller micro-batches give more samples of the same "
            "batch, and estimator='robust' needs no more than 2."
        )
    largest = weigh.largest_parts()
    if largest * weigh.micro > weigh.critical:
        yield (
            f"Even {largest} micro-batches of {weigh.micro:,} are above the critical "
            "batch: make them smaller."
        )
    if weigh.times is None:
        yield (
            "The run has no times (XLA has no clock), so nothing is said of seconds: "
            "the batch is the largest worth its examples."
        )
    elif weigh.workers == 1 and largest > 1:
        yield (
            "The run had one worker, so what communication costs is unknown: up to "
            f"{largest} workers could share the largest batch. Run on 2 to know more."
        )
    yield (
        "The noise scale stands in for the critical batch, which also depends on "
        "curvature: right in its order of magnitude, and it grows while a model learns."
    )
