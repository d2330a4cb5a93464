"""The buckets that all variables are divided into."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from gsnr_tf.sharding.buckets import BLOCK, BucketLayout

SHAPES = [(5, 3), (), (BLOCK,), (300, 2), (3,), (0, 4)]
EACH = range(len(SHAPES))


def layout_of(shapes, bucket_bytes):
    return BucketLayout([tf.Variable(tf.ones(shape)) for shape in shapes], bucket_bytes)


@pytest.mark.parametrize("bucket_bytes", [1, 600, 10**6])
@pytest.mark.parametrize("missing", [[], [1], [0, 3, 5], list(EACH)])
def test_any_range_is_a_part_of_the_whole(bucket_bytes, missing):
    rng = np.random.default_rng(0)
    values = [tf.constant(rng.normal(size=shape)) for shape in SHAPES]
    layout = BucketLayout([tf.Variable(value) for value in values], bucket_bytes)
    given = [None if i in missing else value for i, value in enumerate(values)]
    vectors = [vector.numpy() for vector in layout.pack(given)]
    for index, (found, value) in enumerate(zip(layout.unpack(vectors), values)):
        np.testing.assert_array_equal(found, value * (index not in missing))
    for bucket, vector in zip(layout.buckets, vectors):
        assert vector.shape == (bucket.size,)
        for start in range(0, bucket.size + 1, BLOCK // 2):
            for stop in range(start, bucket.size + 1, BLOCK // 2):
                part = bucket.pack_range(bucket.pick(given), start, stop)
                np.testing.assert_array_equal(part, vector[start:stop])


def test_a_block_belongs_to_one_variable():
    (bucket,) = layout_of(SHAPES, 10**6).buckets
    for place, index in enumerate(bucket.indices):
        start, size = bucket.span(place)
        assert size == np.prod(SHAPES[index])
        owners = set(bucket.variable_of_block[start // BLOCK : -(-(start + size) // BLOCK)])
        assert owners <= {place}


@given(st.lists(st.integers(0, 400), min_size=1, max_size=12), st.integers(1, 200))
def test_every_variable_is_in_one_bucket_and_large_ones_travel_alone(sizes, full):
    layout = layout_of([(size,) for size in sizes], 4 * full)
    inside = [index for bucket in layout.buckets for index in bucket.indices]
    assert sorted(inside) == list(range(len(sizes)))
    for bucket in layout.buckets:
        if any(sizes[index] >= full for index in bucket.indices):
            assert bucket.alone
            assert bucket.size == sizes[bucket.indices[0]]
        # Backward yields the gradients of the last layers first.
        assert bucket.indices == sorted(bucket.indices, reverse=True)
    for index, (number, place) in enumerate(layout.index_map):
        assert layout.buckets[number].indices[place] == index


def test_statistics_are_never_kept_in_less_than_float32():
    assert BucketLayout([tf.Variable(tf.ones([2], tf.bfloat16))]).dtype == tf.float32
    mixed = BucketLayout([tf.Variable(tf.ones([2], t)) for t in (tf.float32, tf.float64)])
    assert mixed.dtype == tf.float64
    assert mixed.buckets[0].weights_dtype == tf.float64


def test_weights_travel_in_their_own_dtype_where_they_share_one():
    layout = BucketLayout([tf.Variable(tf.ones([2], tf.bfloat16)) for _ in range(2)])
    assert layout.buckets[0].weights_dtype == tf.bfloat16
