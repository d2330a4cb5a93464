"""Moments and multiplier, at the edges of float32 and for any order of the samples."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gsnr_tf import stats
from gsnr_tf.stats import Moments, gsnr, gsnr_of_share, multiplier, signal_share
from tests import reference

pytestmark = pytest.mark.smoke

often = settings(max_examples=60, deadline=None, database=None, derandomize=True)
ONE = tf.constant(1.0)


def sets_of_samples(elements, k=st.integers(2, 16)):
    shapes = st.tuples(k, st.integers(1, 6))
    return arrays.arrays("float32", shapes, elements=elements)


def finite(**limits):
    return st.floats(width=32, allow_nan=False, allow_infinity=False, **limits)


# Zeros, denormals, the ends of the range and ordinary numbers, often the same again.
EDGES = st.one_of(
    st.sampled_from([0.0, -0.0, 1e-45, -1e-40, 2**-126, 1e-20, 1.0, -1.0, 3e19, -3.4e38]).map(
        lambda x: float(np.float32(x))
    ),
    finite(),
)
ORDINARY = finite(min_value=-64, max_value=64, allow_subnormal=False).map(
    lambda x: round(x * 32) / 32
)


def moments_of(samples):
    """Through Welford's update, one sample after the other."""
    zeros = tf.zeros(samples.shape[1:])
    moments = Moments(tf.constant(0.0), zeros, zeros)
    for sample in samples:
        moments = moments.add(tf.constant(sample), ONE)
    return moments


def merged(groups):
    """Through the spread about a common mean, as groups meet over the network."""
    parts = [moments_of(group) for group in groups]
    weight = sum(part.weight for part in parts)
    mean = sum(part.weight * part.mean for part in parts) / weight
    return Moments(weight, mean, sum(part.m2_about(mean) for part in parts))


def multiplier_of(samples, gamma=0.1, ceiling=1.0, estimator="paper"):
    moments = moments_of(samples)
    variance = moments.m2 / moments.weight
    r = multiplier(moments.mean, variance, len(samples), gamma, ceiling, estimator)
    return moments.mean.numpy(), r.numpy()


either = pytest.mark.parametrize("estimator", ["paper", "robust"])


# float32 keeps 6e-8 of the samples: at 1e4 deviations, that is 6e-4 of one.
@pytest.mark.parametrize("ratio, bound", [(1e2, 1e-4), (1e3, 1e-3), (1e4, 1e-2)])
@pytest.mark.parametrize("groups", [None, 2, 4, 16])
def test_variance_far_from_zero(ratio, bound, groups):
    rng = np.random.default_rng(0)
    samples = (ratio + rng.normal(size=(16, 5000))).astype("float32")
    _, variance = reference.statistics(samples)
    found = moments_of(samples) if groups is None else merged(np.split(samples, groups))
    error = np.abs(found.m2.numpy() / 16 / variance - 1).max()
    assert error <= bound


@either
@often
@given(
    samples=sets_of_samples(EDGES),
    gamma=st.sampled_from([0.01, 0.1, 1.0]),
    ceiling=st.sampled_from([1, 10]),
)
def test_multiplier_is_within_its_bounds(estimator, samples, gamma, ceiling):
    mean, r = multiplier_of(samples, gamma, ceiling, estimator)
    # A mean that is not finite means that the step is skipped.
    if np.isfinite(mean).all():
        assert np.all((r >= np.float32(gamma)) & (r <= np.float32(ceiling))), r


@often
@given(arrays.arrays("float32", (2, 5), elements=EDGES), st.integers(2, 16))
def test_multiplier_of_any_mean_and_variance(pair, samples):
    mean, variance = pair[0], np.abs(pair[1])
    r = multiplier(tf.constant(mean), tf.constant(variance), samples, 0.1, 1.0).numpy()
    assert np.all((r >= np.float32(0.1)) & (r <= 1)), r
    assert not np.isnan(gsnr(tf.constant(mean), tf.constant(variance), samples)).any()
    share = signal_share(tf.constant(mean), tf.constant(variance), samples).numpy()
    assert np.all((share >= 0) & (share <= 1)), share


def test_a_variance_that_overflows_sits_on_the_floor():
    mean, variance = tf.constant([1.0, 2.0]), tf.constant([float("inf"), 1.0])
    np.testing.assert_allclose(multiplier(mean, variance, 8, 0.1, 1.0), [0.1, 1.0])


@often
@given(
    sets_of_samples(ORDINARY),
    finite(allow_subnormal=False).filter(lambda x: x != 0),
    st.sampled_from([1.0, 10.0]),
)
def test_samples_that_agree_get_the_ceiling(samples, shared, ceiling):
    samples[:, 0] = shared
    _, r = multiplier_of(samples, ceiling=ceiling)
    assert r[0] == ceiling


@either
@often
@given(samples=sets_of_samples(ORDINARY), exponent=st.integers(-30, 30))
def test_the_scale_of_the_gradient_does_not_matter(estimator, samples, exponent):
    scaled = samples * np.float32(2.0**exponent)
    np.testing.assert_array_equal(
        multiplier_of(scaled, estimator=estimator)[1],
        multiplier_of(samples, estimator=estimator)[1],
    )


@pytest.mark.parametrize("k, below", [(2, 0.1436), (3, 0.1481), (8, 0.1497)])
def test_few_samples_of_noise_leave_most_of_the_robust_multiplier_off_the_floor(k, below):
    """Of noise, q is t²/(t² + 1) with Student's t of k − 1 degrees of freedom.

    `below` is its distribution function at a tenth of its mean.
    """
    samples = np.random.default_rng(k).normal(size=(k, 200_000)).astype("float32")
    _, robust = multiplier_of(samples, ceiling=10.0, estimator="robust")
    assert np.mean(robust == np.float32(0.1)) == pytest.approx(below, abs=0.004)
    if k == 2:
        _, paper = multiplier_of(samples, ceiling=10.0)
        assert np.mean(paper == np.float32(0.1)) > 0.95


def test_r_from_its_share():
    mean = tf.constant([0.0, 1e-3, 1.0, 30.0, 2.0])
    variance = tf.constant([1.0, 1.0, 2.0, 1.0, 0.0])
    found = gsnr_of_share(signal_share(mean, variance, 4), 4)
    np.testing.assert_allclose(found, [0.0, 1e-6, 0.5, 900.0, np.inf], rtol=1e-3)


def assert_moments(found, expected, scale):
    for one, other, size in zip(found, expected, (1, scale, scale**2)):
        np.testing.assert_allclose(one, other, rtol=2e-6, atol=4e-6 * size)


@often
@given(sets_of_samples(ORDINARY), st.randoms(use_true_random=False))
def test_the_order_of_the_samples_does_not_matter(samples, random):
    order = list(range(len(samples)))
    random.shuffle(order)
    scale = max(np.abs(samples).max(), 1.0)
    assert_moments(moments_of(samples[order]), moments_of(samples), scale)


@often
@given(sets_of_samples(ORDINARY), st.data())
def test_any_grouping_gives_the_same_moments(samples, data):
    cuts = data.draw(st.sets(st.integers(1, len(samples) - 1)))
    groups = np.split(samples, sorted(cuts))
    scale = max(np.abs(samples).max(), 1.0)
    assert_moments(merged(groups), moments_of(samples), scale)


@often
@given(sets_of_samples(ORDINARY), st.data())
def test_weighted_moments(samples, data):
    counts = data.draw(st.lists(st.integers(0, 9), min_size=16, max_size=16))[: len(samples)]
    counts[0] += not any(counts)
    zeros = tf.zeros(samples.shape[1:])
    moments = Moments(tf.constant(0.0), zeros, zeros)
    for sample, count in zip(samples, counts):
        moments = moments.add(tf.constant(sample), tf.constant(float(count)))
    mean, variance = reference.statistics(samples, counts)
    expected = Moments(sum(counts), mean, variance * sum(counts))
    assert_moments(moments, expected, max(np.abs(samples).max(), 1.0) * 8)


@either
@often
@given(samples=sets_of_samples(ORDINARY))
def test_multiplier_equals_the_reference(estimator, samples):
    mean, r = multiplier_of(samples, ceiling=10.0, estimator=estimator)
    exact_mean, variance = reference.statistics(samples)
    # A mean that cancels has no digits of its own in float32.
    known = (np.abs(exact_mean) > 1e-3) | (exact_mean == mean)
    if estimator == "paper":
        expected = reference.multiplier(exact_mean, variance, 0.1, 10.0)
    else:
        k = len(samples)
        expected = reference.robust_multiplier(exact_mean, variance, k, 0.1, 10.0)
    if known.all():
        np.testing.assert_allclose(r, expected, rtol=2e-3)


def table_of(groups):
    """Means, m2s and weights of groups of samples, as ranks send them."""
    parts = [moments_of(group) for group in groups]
    return [tf.stack([getattr(part, name) for part in parts]) for name in ("mean", "m2", "weight")]


@pytest.mark.parametrize("ratio", [1, 1000])
@pytest.mark.parametrize("groups", [2, 256, 1024])
def test_many_groups(groups, ratio):
    """Also where the mean is a thousand times the deviation."""
    rng = np.random.default_rng(0)
    samples = (ratio + rng.normal(size=(2 * groups, 50))).astype("float32")
    mean, variance = reference.statistics(samples)
    found = stats.merged(*table_of(np.split(samples, groups)))
    np.testing.assert_allclose(found.mean, mean, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(found.m2 / found.weight, variance, rtol=1e-3)


def test_what_is_compiled_does_not_grow_with_the_groups():
    def operations(groups):
        spec = tf.TensorSpec([groups, 50]), tf.TensorSpec([groups, 50]), tf.TensorSpec([groups])
        graph = tf.function(stats.merged).get_concrete_function(*spec).graph
        return len(graph.get_operations())

    assert operations(1024) == operations(2)
