"""Noise scale and what follows from it, against gradients of known covariance."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsnr_tf.stats import noise_scale as ns

often = settings(max_examples=60, deadline=None, database=None, derandomize=True)
positive = st.floats(1e-3, 1e6)


def sums(samples):
    """S1 and S2 of samples `[k, n]`."""
    return np.sum(samples.mean(0) ** 2), np.sum(samples.var(0))


@pytest.mark.parametrize("samples, examples", [(2, 16), (8, 4), (32, 1)])
def test_estimates_are_unbiased(samples, examples):
    """Averages over many updates meet the covariance that made the gradients."""
    rng = np.random.default_rng(samples)
    true = rng.normal(size=20)
    factor = rng.normal(size=(20, 20))  # of single examples, correlated
    trace, signal = [], []
    for _ in range(3000):
        noise = rng.normal(size=(samples, examples, 20)).mean(1) @ factor.T
        s1, s2 = sums(true + noise)
        trace.append(ns.noise_trace(s2, samples, examples))
        signal.append(ns.signal_sq_norm(s1, s2, samples))
    for found, expected in [(trace, np.sum(factor**2)), (signal, np.sum(true**2))]:
        error = np.std(found) / math.sqrt(len(found))
        assert abs(np.mean(found) - expected) < 4 * error
        assert error < 0.1 * expected
    # The plain ratio of sums is not: its S1 holds the noise of the mean.
    assert np.mean(signal) < np.sum(true**2) + 0.5 * np.sum(factor**2) / samples / examples


def test_noise_without_signal_has_an_infinite_scale():
    assert ns.noise_scale(3.0, -1e-9) == math.inf
    assert ns.noise_scale(3.0, 0.0) == math.inf
    assert ns.generalization_ratio(3.0, -1.0, 64) == 0


def test_the_size_of_samples_does_not_matter():
    """One set of examples, divided in two ways, gives the same expectations."""
    rng = np.random.default_rng(3)
    found = {2: [], 16: []}
    for _ in range(4000):
        examples = 0.3 + rng.normal(size=(64, 10))
        for samples, into in found.items():
            means = examples.reshape(samples, -1, 10).mean(1)
            into.append(ns.noise_trace(sums(means)[1], samples, 64 // samples))
    assert np.mean(found[2]) == pytest.approx(10, rel=0.03)
    assert np.mean(found[16]) == pytest.approx(10, rel=0.03)


def descend(noise_scale, batch, steps_min):
    """Steps that a run takes whose steps each make the progress of Eq. 2.7."""
    progress, steps = 0.0, 0
    while progress < steps_min:
        progress += 1 / (1 + noise_scale(progress / steps_min) / batch)
        steps += 1
    return steps


def test_the_critical_batch_predicts_steps_of_a_run_whose_noise_grows():
    def noise(progress):
        return 100 * 50**progress  # from 100 to 5000

    def recorded(batch, steps_min=2000):
        progress, scales = 0.0, []
        while progress < steps_min:
            scales.append(noise(progress / steps_min))
            progress += 1 / (1 + scales[-1] / batch)
        return scales

    def critical_at(batch):
        scales = np.array(recorded(batch))
        # The gradient shrinks on its way, and with it its noise.
        signal = np.geomspace(10, 0.1, len(scales))
        return float(ns.critical_batch(scales * signal, signal, batch))

    critical = critical_at(256)
    # Whatever batch the run had, the answer is the same.
    assert critical_at(4096) == pytest.approx(critical, rel=0.01)
    exact = 100 * 49 / math.log(50)  # the mean of `noise` over progress
    assert critical == pytest.approx(exact, rel=0.01)
    for batch in (64, 1024, 16384):
        measured = descend(noise, batch, 2000) / descend(noise, 256, 2000)
        assert ns.relative_steps(critical, batch, 256) == pytest.approx(measured, rel=0.01)
        ratio = measured * batch / 256
        assert ns.relative_examples(critical, batch, 256) == pytest.approx(ratio, rel=0.01)


def test_a_block_whose_signal_drowns_is_made_up_for_by_the_others():
    signal = np.array([1.0, -0.1, 1.1, 1.0])
    found = ns.critical_batch(np.full(4, 200.0), signal, np.array([50, 50, 50, 80]))
    assert 200 < found < 400
    assert ns.critical_batch(np.ones(2), np.array([-1e-3, 0.0]), 64) == math.inf


def test_doubling_far_below_the_critical_batch():
    """Four times below the critical batch: (1 + 2)/(1 + 4) and (1 + ½)/(1 + ¼)."""
    assert ns.relative_steps(4.0, 2, 1) == pytest.approx(0.6)
    assert ns.relative_examples(4.0, 2, 1) == pytest.approx(1.2)


@often
@given(positive, positive, st.floats(1, 1e4), st.floats(1, 64))
def test_gain_lies_between_one_and_the_scale(trace, signal, base, scale):
    gain = ns.adascale_gain(trace, signal, base, base * scale)
    assert 1 - 1e-9 <= gain <= scale * (1 + 1e-9)
    # A step of gain G stands for G steps of the base: so many fewer are needed.
    critical = trace / signal
    steps = ns.relative_steps(critical, base * scale, base)
    assert 1 / gain == pytest.approx(steps, rel=1e-6)


def test_gain_at_its_ends():
    assert ns.adascale_gain(5.0, -1.0, 32, 256) == pytest.approx(8)
    assert ns.adascale_gain(0.0, 1.0, 32, 256) == 1


@often
@given(st.integers(1, 10_000), st.randoms(use_true_random=False))
def test_generalization_ratio_equals_the_sum_over_elements(n, random):
    rng = np.random.default_rng(random.randrange(2**32))
    g, rho = rng.normal(size=50), rng.lognormal(size=50)
    expected_sq = g**2 + rho**2 / n
    share = expected_sq / expected_sq.sum()
    literal = 1 - np.sum(share / (g**2 / rho**2 + 1 / n)) / n
    found = ns.generalization_ratio(np.sum(rho**2), np.sum(g**2), n)
    assert found == pytest.approx(literal, abs=1e-9)


def test_smoothing_has_no_bias_at_its_beginning():
    smoothed = ns.Smoothed(0.9)
    assert smoothed.add(7.0) == pytest.approx(7)
    values = [7.0, 1.0, 4.0]
    found = [smoothed.add(v) for v in values[1:]][-1]
    weights = [0.9**2, 0.9, 1]
    assert found == pytest.approx(np.dot(values, weights) / sum(weights))
    with pytest.raises(ValueError, match="Received: decay=1"):
        ns.Smoothed(1)
