"""Sums and counts of a step against numpy's."""

import numpy as np
import pytest
import tensorflow as tf

from gsnr_tf.stats import summary

RNG = np.random.default_rng(0)


def test_bins_of_r_are_those_between_the_edges():
    r = np.float32(10 ** RNG.uniform(-9, 5, size=5000))
    expected = np.searchsorted(summary.R_EDGES, r, side="right")
    found = summary.r_bin(tf.constant(r)).numpy()
    # A value within rounding of an edge may fall on either side of it.
    near = np.abs(np.log10(r)[:, None] - np.log10(summary.R_EDGES)).min(1) < 1e-5
    np.testing.assert_array_equal(found[~near], expected[~near])
    assert near.mean() < 0.01


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_r_at_its_ends(dtype):
    ends = tf.constant([0.0, 1e-30, 1e30, np.inf], dtype)
    assert summary.r_bin(ends).numpy().tolist() == [0, 0] + 2 * [summary.R_BINS - 1]


@pytest.mark.parametrize("gamma, ceiling", [(0.1, 1.0), (0.1, 10.0), (0.01, 0.5)])
def test_bins_of_the_multiplier(gamma, ceiling):
    r = RNG.uniform(gamma, ceiling, size=5000).astype("float32")
    r[:100], r[100:200] = gamma, ceiling
    edges = summary.multiplier_edges(gamma, ceiling)
    expected, _ = np.histogram(r.astype("float64").clip(gamma, ceiling), edges)
    bins = summary.multiplier_bin(tf.constant(r), gamma, ceiling)
    found = np.bincount(bins.numpy(), minlength=summary.MULTIPLIER_BINS)
    assert np.abs(found - expected).max() <= 2  # on an edge
    assert found[0] >= 100 and found[-1] >= 100 and found.sum() == 5000


def test_without_room_between_its_bounds_all_multipliers_share_a_bin():
    bins = summary.multiplier_bin(tf.ones([7]), 1.0, 1.0).numpy()
    assert len(set(bins)) == 1


def test_counts_are_those_of_each_variable():
    owner = RNG.integers(0, 3, size=400)
    bins = RNG.integers(0, 5, size=400)
    counted = RNG.integers(0, 2, size=400)
    found = summary.counts_by_bin(
        tf.constant(bins, tf.int32),
        tf.constant(counted, tf.float32),
        tf.constant(owner, tf.int32),
        3,
        5,
    )
    expected = np.zeros([3, 5])
    np.add.at(expected, (owner, bins), counted)
    np.testing.assert_array_equal(found, expected)


def test_terms_of_elements_without_information_are_zero():
    known = tf.constant([0.0, 1.0, 1.0, 1.0])
    r = tf.constant([0.1, 0.1, 0.5, 1.0])
    total, floor, ceiling = summary.multiplier_terms(r, known, 0.1, 1.0)
    np.testing.assert_allclose(total, [0, 0.1, 0.5, 1])
    assert floor.numpy().tolist() == [0, 1, 0, 0]
    assert ceiling.numpy().tolist() == [0, 0, 0, 1]
