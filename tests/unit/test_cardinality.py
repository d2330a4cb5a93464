"""The number of batches that `shard` promises is the number that there is."""

import pytest
import tensorflow as tf

from gsnr_tf.data.cardinality import joined_batches
from gsnr_tf.data.rows import join_short_batches

RANKS = 3


def numbers(examples):
    return tf.data.Dataset.range(examples)


KNOWN = {
    "whole": numbers(16).batch(8),
    "rest of enough": numbers(19).batch(8),
    "short rest": numbers(18).batch(8),
    "shortest rest": numbers(17).batch(8),
    "parallel": numbers(17).batch(8, num_parallel_calls=2),
    "padded": numbers(17).padded_batch(8),
    "mapped": numbers(17).shuffle(17, seed=1).batch(8).map(lambda x: 2 * x).prefetch(1),
    "mapped at once": numbers(17).batch(8).map(lambda x: x, num_parallel_calls=2).cache(),
    "shuffled": numbers(17).batch(8).shuffle(3, seed=3),
    "options": numbers(18).batch(8).with_options(tf.data.Options()),
    "one batch": numbers(7).batch(8),
    "too few": numbers(2).batch(8),
    "asserted": numbers(20)
    .filter(lambda x: x < 17)
    .apply(tf.data.experimental.assert_cardinality(17))
    .batch(8),
}
UNKNOWN = {
    "filtered": numbers(17).filter(lambda x: x > 2).batch(8),
    "joined": numbers(17).batch(8).concatenate(numbers(9).batch(8)),
    "smaller than ranks": numbers(17).batch(2),
    "repeated": numbers(17).batch(8).repeat(2),
    "other rows": numbers(17).batch(8).map(lambda x: x[::2]),
    "batches of batches": numbers(17).batch(8).unbatch().batch(4),
}


def first_rows(dataset):
    return int(next(iter(dataset)).shape[0])


@pytest.mark.parametrize("name", KNOWN)
def test_what_is_known_is_right(name):
    dataset = KNOWN[name]
    sizes = [int(b.shape[0]) for (b,) in join_short_batches(dataset, RANKS)]
    assert joined_batches(dataset, RANKS, first_rows(dataset)) == len(sizes)
    assert min(sizes) >= RANKS or name == "too few"


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_only_reading_tells_is_left_unknown(name):
    dataset = UNKNOWN[name]
    assert joined_batches(dataset, RANKS, first_rows(dataset)) is None


def test_what_is_endless_stays_so():
    dataset = numbers(17).batch(8).repeat()
    assert joined_batches(dataset, RANKS, 8) == tf.data.INFINITE_CARDINALITY
