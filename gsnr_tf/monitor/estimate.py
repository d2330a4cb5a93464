"""The critical batch of a run, and how sure it is."""

from typing import NamedTuple

import numpy as np

from gsnr_tf.stats import noise_scale

# The noise scale changes slowly: within a segment of so many records it counts as
# constant, and their spread is that of the estimate.
_SEGMENT = 8
_MOST_SEGMENTS = 20
_RESAMPLED = 2000
_INTERVAL = (5, 95)


class Estimate(NamedTuple):
    """A number and the interval that holds it in 90 of 100 cases.

    Attributes:
        value, low, high: Floats, infinite where no signal is to be seen.
        records: Int, how many records it rests on.
    """

    value: float
    low: float
    high: float
    records: int

    @property
    def factor(self):
        """By which factor the ends of the interval differ."""
        known = self.low > 0 and np.isfinite(self.high)
        return self.high / self.low if known else np.inf


class Noise(NamedTuple):
    """The noise of a run, in segments of its records.

    Attributes:
        examples: Array `[segments]`, where each segment ends.
        trace, signal, batch: Arrays `[segments]`, means of the segment.
        resampled_trace, resampled_signal: Arrays `[times, segments]`: means of records
            drawn anew with replacement, within each segment (the bootstrap).
        records: Int.
    """

    examples: np.ndarray
    trace: np.ndarray
    signal: np.ndarray
    batch: np.ndarray
    resampled_trace: np.ndarray
    resampled_signal: np.ndarray
    records: int

    def critical_batch(self):
        """`Estimate` of the critical batch of the whole run, in examples."""
        value = noise_scale.critical_batch(self.trace, self.signal, self.batch)
        drawn = noise_scale.critical_batch(self.resampled_trace, self.resampled_signal, self.batch)
        return self._estimate(value, drawn)

    def scale(self, segment):
        """`Estimate` of the noise scale of one segment, in examples."""
        value = _ratio(self.trace[segment], self.signal[segment])
        drawn = _ratio(self.resampled_trace[:, segment], self.resampled_signal[:, segment])
        return self._estimate(value, drawn)

    def _estimate(self, value, drawn):
        # Infinities have their place in the order, but not between two numbers.
        low, high = np.percentile(drawn, _INTERVAL, method="nearest")
        return Estimate(float(value), float(low), float(high), self.records)


def _ratio(trace, signal):
    return np.where(signal > 0, trace / np.where(signal > 0, signal, 1), np.inf)


def noise_of(run):
    """`Noise` of a `Run`, or `None` where it has no segment of records yet."""
    examples, trace = run.series("noise/trace")
    _, signal = run.series("noise/signal")
    _, batch = run.series("batch/examples")
    known = np.isfinite(trace) & np.isfinite(signal)
    examples, trace, signal = examples[known], trace[known], signal[known]
    batch = batch[known]
    if len(trace) < 2:
        return None
    number = int(np.clip(len(trace) // _SEGMENT, 1, _MOST_SEGMENTS))
    segments = np.array_split(np.arange(len(trace)), number)
    # A fixed seed: the same records say the same, whoever asks.
    rng = np.random.default_rng(0)
    drawn = [s[rng.integers(0, len(s), (_RESAMPLED, len(s)))] for s in segments]
    return Noise(
        np.array([examples[s[-1]] for s in segments]),
        np.array([trace[s].mean() for s in segments]),
        np.array([signal[s].mean() for s in segments]),
        np.array([batch[s].mean() for s in segments]),
        np.stack([trace[d].mean(1) for d in drawn], axis=1),
        np.stack([signal[d].mean(1) for d in drawn], axis=1),
        len(trace),
    )
