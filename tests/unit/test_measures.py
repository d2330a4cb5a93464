"""From sums to recorded numbers, against what the elements themselves say."""

import numpy as np
import pytest
import tensorflow as tf

from gsnr_tf.monitor.keys import KEYS, OF_VARIABLES
from gsnr_tf.monitor.measures import Measures, quantile
from gsnr_tf.monitor.sinks import Histogram, PerVariable
from gsnr_tf.stats import countable, gsnr, multiplier, noise_scale, summary

SIZES = [300, 40, 7]
GAMMA, CEILING = 0.1, 2.0


def update(rng, samples=8, noise=1.0):
    """Samples `[k, n]` of each variable, and the summary of a step with them."""
    rows, r_counts, m_counts, all_samples = [], [], [], []
    for index, size in enumerate(SIZES):
        parts = rng.normal(size=size) + noise * rng.normal(size=(samples, size))
        parts[:, : size // 7] = 0  # no information
        parts = parts.astype("float32")
        mean, variance = tf.constant(parts.mean(0)), tf.constant(parts.var(0))
        r = gsnr(mean, variance, samples)
        m = multiplier(mean, variance, samples, GAMMA, CEILING)
        known = tf.cast(mean != 0, tf.float32)
        terms = [*countable(mean, variance, r), mean**2, variance, known]
        terms += [*summary.multiplier_terms(m, known, GAMMA, CEILING)]
        sums = [float(tf.reduce_sum(t)) for t in terms]
        rows.append([*sums, 4.0 * size, 9.0 * size, 1.0 + index])
        owner = tf.zeros([size], tf.int32)
        for counts, bins, number in (
            (r_counts, summary.r_bin(r), summary.R_BINS),
            (
                m_counts,
                summary.multiplier_bin(m, GAMMA, CEILING),
                summary.MULTIPLIER_BINS,
            ),
        ):
            counts.append(summary.counts_by_bin(bins, known, owner, 1, number)[0])
        all_samples.append(parts)
    arrays = [np.array(part) for part in (rows, r_counts, m_counts)]
    return all_samples, summary.Summary(*arrays)


def measured(rng=None, **options):
    samples, found = update(rng or np.random.default_rng(0), **options)
    measures = Measures(["a", "b/c", "d"], SIZES, GAMMA, CEILING)
    return samples, dict(measures.of(found, len(samples[0]), 64))


def test_every_key_is_documented_and_every_number_of_variables_there():
    _, values = measured()
    named = {k for k in values if not k.startswith("variable/")}
    assert named <= set(KEYS)
    assert {f"variable/{name}" for name in OF_VARIABLES} == set(values) - named
    assert all(isinstance(values[f"variable/{n}"], PerVariable) for n in OF_VARIABLES)
    assert values["variable/r_q50"].paths == ["a", "b/c", "d"]


def test_totals_are_those_of_all_elements():
    samples, values = measured()
    flat = np.concatenate([s.astype("float64") for s in samples], axis=1)
    mean, variance = flat.mean(0), flat.var(0)
    known = variance > 0
    r = mean[known] ** 2 / variance[known]
    assert values["gsnr/ratio"] == pytest.approx(np.sum(mean**2) / np.sum(variance), 1e-4)
    assert values["gsnr/informative"] == pytest.approx(known.mean(), 1e-6)
    assert values["gsnr/r_mean"] == pytest.approx(r.mean(), 1e-3)
    assert values["norm/gradient"] == pytest.approx(np.linalg.norm(mean), 1e-5)
    assert values["norm/weights"] == pytest.approx(2 * np.sqrt(sum(SIZES)))
    assert values["norm/update"] == pytest.approx(3 * np.sqrt(sum(SIZES)))
    assert values["norm/trust_ratio"] == pytest.approx(np.average([1, 2, 3], weights=SIZES))
    assert values["variable/trust_ratio"].values == pytest.approx([1, 2, 3])
    for name, share in [("r_q10", 0.1), ("r_q50", 0.5), ("r_q90", 0.9)]:
        # Within a bin of a quarter decade.
        exact = np.quantile(r, share)
        assert np.abs(np.log10(values[f"gsnr/{name}"] / exact)) < 0.25


def test_shares_and_means_of_the_multiplier():
    samples, values = measured()
    for index, parts in enumerate(samples):
        mean, variance = tf.constant(parts.mean(0)), tf.constant(parts.var(0))
        m = multiplier(mean, variance, 8, GAMMA, CEILING).numpy()[parts.var(0) > 0]
        one = {k: v.values[index] for k, v in values.items() if k.startswith("variable/")}
        assert one["variable/multiplier"] == pytest.approx(m.mean(), 1e-5)
        assert one["variable/at_floor"] == pytest.approx(np.mean(m == np.float32(0.1)))
        assert one["variable/at_ceiling"] == pytest.approx(np.mean(m == 2.0))


def test_the_cosine_is_that_of_samples_with_their_mean():
    """The estimate against the cosines themselves, their mean over many samples."""
    samples, values = measured(samples=64)
    flat = np.concatenate([s.astype("float64") for s in samples], axis=1)
    mean = flat.mean(0)
    cosines = flat @ mean / np.linalg.norm(flat, axis=1) / np.linalg.norm(mean)
    assert values["gsnr/cosine"] == pytest.approx(cosines.mean(), abs=0.005)
    assert 0.2 < values["gsnr/cosine"] < 0.9


def test_noise_is_smoothed_above_and_below_the_line_apart():
    rng = np.random.default_rng(1)
    measures = Measures(["a", "b", "c"], SIZES, GAMMA, CEILING)
    traces, signals, smooth = [], [], []
    for _ in range(30):
        samples, found = update(rng, noise=3.0)
        values = dict(measures.of(found, 8, 64))
        flat = np.concatenate([s.astype("float64") for s in samples], axis=1)
        traces.append(8 * flat.var(0, ddof=1).sum())
        signals.append((flat.mean(0) ** 2).sum() - flat.var(0, ddof=1).sum() / 8)
        weights = 0.9 ** np.arange(len(traces))[::-1]
        expected = np.dot(weights, traces) / np.dot(weights, signals)
        assert values["noise/trace"] == pytest.approx(traces[-1], 1e-4)
        assert values["noise/signal"] == pytest.approx(signals[-1], 1e-3)
        assert values["noise/scale"] == pytest.approx(expected, 1e-3)
        smooth.append([np.dot(weights, traces), np.dot(weights, signals)])
        critical = noise_scale.critical_batch(*np.transpose(smooth), 64)
        assert values["noise/critical_batch"] == pytest.approx(critical, 1e-3)
        assert 1 <= values["noise/adascale_gain"] <= 8
        share = 1 / (1 + values["noise/scale"] / 64)
        assert values["noise/generalization_ratio"] == pytest.approx(share)


def test_a_step_without_information_is_recorded_as_unknown():
    nothing = summary.Summary(
        np.zeros([3, len(summary.FIELDS)]),
        np.zeros([3, summary.R_BINS]),
        np.zeros([3, summary.MULTIPLIER_BINS]),
    )
    values = dict(Measures(["a", "b", "c"], SIZES, GAMMA, CEILING).of(nothing, 8, 64))
    assert np.isnan(values["gsnr/multiplier"]) and np.isnan(values["gsnr/r_q50"])
    assert values["noise/trace"] == 0 and "noise/scale" not in values
    assert np.isfinite(values["norm/gradient"])


def test_quantiles_beyond_the_edges():
    counts = np.zeros([2, summary.R_BINS])
    counts[0, 0] = counts[1, -1] = 5
    low, high = quantile(counts, 0.5)
    assert (low, high) == (summary.R_EDGES[0], summary.R_EDGES[-1])


def test_histograms_have_an_edge_more_than_counts():
    samples, values = measured()
    for name in ("histogram/r", "histogram/multiplier"):
        histogram = values[name]
        assert isinstance(histogram, Histogram)
        assert len(histogram.edges) == len(histogram.counts) + 1
        informative = sum(int((s.var(0) > 0).sum()) for s in samples)
        assert np.sum(histogram.counts) == informative
