"""`shard`: every example once, equal steps, the same global batches."""

import functools
import operator

import pytest


def rows(examples, batch, drop_remainder=False):
    import tensorflow as tf

    import gsnr_tf

    tf.random.set_seed(1)
    data = tf.data.Dataset.from_tensor_slices(
        {"id": tf.range(examples), "x": tf.random.normal([examples, 3], seed=1) * 0}
    )
    data = data.shuffle(examples, seed=5).batch(batch, drop_remainder=drop_remainder)
    sharded = gsnr_tf.shard(data)
    structure = sharded.element_spec["x"].shape.rank
    return [b["id"].numpy().tolist() for b in sharded], structure


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("examples, batch", [(24, 6), (25, 6), (26, 6), (7, 6), (10, 100)])
def test_every_example_once_and_equal_steps(on_ranks, ranks, examples, batch):
    parts, structures = zip(*on_ranks(ranks, rows, examples, batch))
    assert structures == (2,) * ranks
    assert len({len(part) for part in parts}) == 1
    assert all(len(step) > 0 for part in parts for step in part)
    seen = [i for part in parts for step in part for i in step]
    assert sorted(seen) == list(range(examples))
    for step in zip(*parts):
        sizes = [len(rows_of_rank) for rows_of_rank in step]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_together_see_the_batches_of_one_process(on_ranks, ranks):
    alone, _ = rows(25, 6)
    parts, _ = zip(*on_ranks(ranks, rows, 25, 6))
    together = [[i for part in step for i in part] for step in zip(*parts)]
    joined = sum(len(batch) < ranks for batch in alone)
    assert together == [
        *alone[: -1 - joined],
        functools.reduce(operator.iadd, alone[-1 - joined :], []),
    ]


def test_cardinality_survives_where_all_batches_are_full(on_ranks):
    for part, _ in on_ranks(2, rows, 25, 6, True):
        assert [len(step) for step in part] == [3, 3, 3, 3]


def warnings_of_fit(examples):
    import warnings

    import keras
    import numpy as np
    import tensorflow as tf

    import gsnr_tf

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    optimizer = gsnr_tf.DistributedOptimizer(keras.optimizers.SGD(0.1))
    model.compile(optimizer=optimizer, loss="mse")
    x = np.ones((examples, 2), "float32")
    data = tf.data.Dataset.from_tensor_slices((x, x[:, :1])).shuffle(99, seed=1).batch(8)
    data = gsnr_tf.shard(data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(data, epochs=2, shuffle=False, verbose=0, validation_data=data)
    steps = int(optimizer.iterations)
    return [str(w.message) for w in caught], steps, int(data.cardinality())


@pytest.mark.parametrize("examples, batches", [(21, 3), (16, 2), (17, 2)])
def test_keras_does_not_warn_of_a_number_of_batches_it_knows(on_ranks, examples, batches):
    for messages, steps, cardinality in on_ranks(2, warnings_of_fit, examples):
        assert not [m for m in messages if "ran out of data" in m]
        assert (steps, cardinality) == (2 * batches, batches)


def refused(kind):
    import tensorflow as tf

    import gsnr_tf

    data = tf.data.Dataset.range(100)
    if kind == "unseeded":
        tf.random.set_seed(gsnr_tf.rank())
        data = data.shuffle(100).batch(50)
    elif kind == "ragged":
        data = data.map(lambda i: tf.ragged.range(tf.stack([i, i])))
    elif kind == "tiny":
        data = data.take(1).batch(10)
    try:
        return list(gsnr_tf.shard(data))
    except (ValueError, TypeError, tf.errors.InvalidArgumentError) as error:
        return str(error)


@pytest.mark.parametrize(
    "kind, advice",
    [
        ("unseeded", "Give `shuffle` a seed"),
        ("scalars", "dataset.batch(global_batch_size)"),
        ("ragged", "before you make its elements sparse or ragged"),
        ("tiny", "cannot be shared by"),
    ],
)
def test_what_cannot_be_shared_is_refused_on_all_ranks(on_ranks, kind, advice):
    for message in on_ranks(2, refused, kind):
        assert advice in message
