"""From the sums of an update to the numbers that are recorded."""

import numpy as np

from gsnr_tf.monitor.keys import OF_VARIABLES
from gsnr_tf.monitor.sinks import Histogram, PerVariable
from gsnr_tf.stats import noise_scale
from gsnr_tf.stats.summary import FIELDS, R_EDGES, multiplier_edges

_QUANTILES = {"r_q10": 0.1, "r_q50": 0.5, "r_q90": 0.9}
# The weight of the past in the averages behind the noise scale: about ten records.
_SMOOTHING = 0.9


def measure(sums, r_counts, sizes):
    """Numbers of each row of sums: a variable, or all of them together.

    Args:
        sums: Array `[rows, len(FIELDS)]`, "phi" times the elements.
        r_counts: Array `[rows, R_BINS]`.
        sizes: Array `[rows]`, elements.

    Returns:
        Dict of arrays `[rows]`, a key for each of `OF_VARIABLES`; NaN where nothing
        was informative.
    """
    of = dict(zip(FIELDS, np.asarray(sums, np.float64).T))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {
            "ratio": of["mean_sq"] / of["variance"],
            "multiplier": of["multiplier"] / of["informative"],
            "at_floor": of["at_floor"] / of["informative"],
            "at_ceiling": of["at_ceiling"] / of["informative"],
            "r_mean": of["r"] / of["finite"],
            "cosine": np.sqrt(of["mean_sq"] / (of["mean_sq"] + of["variance"])),
            "informative": of["informative"] / sizes,
            "gradient": np.sqrt(of["mean_sq"]),
            "weights": np.sqrt(of["theta_sq"]),
            "update": np.sqrt(of["u_sq"]),
            "trust_ratio": of["phi"] / sizes,
        }
    for name, share in _QUANTILES.items():
        found[name] = quantile(r_counts, share)
    return {name: found[name] for name in OF_VARIABLES}


def quantile(counts, share):
    """The r that `share` of the elements stay below, evenly in log r within a bin.

    Args:
        counts: Array `[rows, R_BINS]`.
        share: Float in (0, 1).

    Returns:
        Array `[rows]`: the first or last edge where it lies beyond, NaN for rows
        without elements.
    """
    counts = np.asarray(counts, np.float64)
    above = np.cumsum(counts, axis=1)
    wanted = share * above[:, -1:]
    index = np.argmax(above >= wanted, axis=1)
    row = np.arange(len(counts))
    inside = np.clip(index, 1, len(R_EDGES) - 1)
    low, high = np.log(R_EDGES[inside - 1]), np.log(R_EDGES[inside])
    missing = above[row, index] - wanted[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        within = 1 - missing / counts[row, index]
    r = np.exp(low + within * (high - low))
    r = np.where(index < 1, R_EDGES[0], np.where(index >= len(R_EDGES), R_EDGES[-1], r))
    return np.where(above[:, -1] > 0, r, np.nan)


class Measures:
    """The numbers of one update after another, with averages over them.

    Args:
        paths: Paths of the variables.
        sizes: Elements of each.
        gamma, ceiling: Bounds of the multiplier.
    """

    def __init__(self, paths, sizes, gamma, ceiling):
        self._paths = list(paths)
        self._sizes = np.asarray(sizes, np.float64)
        self._edges = multiplier_edges(gamma, ceiling)
        self._trace = noise_scale.Smoothed(_SMOOTHING)
        self._signal = noise_scale.Smoothed(_SMOOTHING)
        self._progress = self._noise_by_progress = 0.0

    def of(self, summary, samples, batch):
        """Pairs of a key and a value for one update.

        Args:
            summary: `stats.summary.Summary`.
            samples: k.
            batch: Examples of the update, over all workers.
        """
        rows = np.array(summary.sums, np.float64)
        # In total, the mean of φ over elements.
        rows[:, FIELDS.index("phi")] *= self._sizes
        each = measure(rows, summary.r_counts, self._sizes)
        total = measure(
            rows.sum(0, keepdims=True),
            np.sum(summary.r_counts, axis=0, keepdims=True),
            self._sizes.sum(keepdims=True),
        )
        for name in OF_VARIABLES:
            norm = name in ("gradient", "weights", "update", "trust_ratio")
            yield f"{'norm' if norm else 'gsnr'}/{name}", total[name][0]
        for name in OF_VARIABLES:
            yield f"variable/{name}", PerVariable(self._paths, each[name])
        yield "histogram/r", Histogram(*_without_open_ends(np.sum(summary.r_counts, 0)))
        counts = np.sum(summary.multiplier_counts, axis=0)
        yield "histogram/multiplier", Histogram(self._edges, counts)
        s1, s2 = summary.field("mean_sq").sum(), summary.field("variance").sum()
        yield from self._noise(s1, s2, samples, batch)

    def _noise(self, s1, s2, samples, batch):
        trace = noise_scale.noise_trace(s2, samples, batch / samples)
        signal = noise_scale.signal_sq_norm(s1, s2, samples)
        yield "noise/trace", trace
        yield "noise/signal", signal
        if not trace > 0:
            return  # nobody disagreed: an update without information
        trace, signal = self._trace.add(trace), self._signal.add(signal)
        scale = noise_scale.noise_scale(trace, signal)
        yield "noise/scale", scale
        # As `noise_scale.critical_batch`, one update after the other.
        made = noise_scale.progress(trace, signal, batch)
        self._progress += made
        self._noise_by_progress += batch * (1 - made)
        critical = noise_scale.noise_scale(self._noise_by_progress, self._progress)
        yield "noise/critical_batch", critical
        sample = batch / samples
        gain = noise_scale.adascale_gain(trace, signal, sample, batch)
        yield "noise/adascale_gain", gain
        ratio = noise_scale.generalization_ratio(trace, signal, batch)
        yield "noise/generalization_ratio", ratio


def _without_open_ends(counts):
    """Edges and counts of r, what lies beyond counted in a decade on either side."""
    edges = np.concatenate([[R_EDGES[0] / 10], R_EDGES, [R_EDGES[-1] * 10]])
    return edges, counts
