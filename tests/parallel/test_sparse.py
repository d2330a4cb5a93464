"""Embedding tables on several ranks: as on one, at the cost of the rows that are touched."""

import keras
import numpy as np
import pytest

OPTIMIZERS = {
    "sgd": ("GSNRSGD", {"momentum": 0.9}),
    "adam": ("GSNRAdam", {"estimator": "james_stein", "granularity": "row"}),
    "lamb": ("GSNRLamb", {"l2": 1e-3, "exclude_from_weight_decay": []}),
    "lars": ("GSNRLars", {"global_clipnorm": 0.5}),
}


def fit(name, arguments, policy="float32", dense_layers=True):
    """A recommender after two epochs, of ranks that share out the batches of one process."""
    import keras
    import numpy as np

    import gsnr_tf
    from gsnr_tf.layers import read_rows

    rank, size = (gsnr_tf.rank(), gsnr_tf.size()) if gsnr_tf.size() > 1 else (0, 1)
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(3)
    users = keras.Input((2,), dtype="int64")
    items = keras.Input((3,), dtype="int64")
    shared = keras.layers.Embedding(50, 4)
    parts = [
        shared(users),
        keras.layers.Embedding(70, 4)(items),
        keras.layers.Dense(4)(keras.layers.Embedding(70, 2)(items))
        if dense_layers
        else shared(items),
        shared(items),
    ]
    parts = [keras.layers.Flatten()(part) for part in parts]
    output = keras.layers.Concatenate(dtype="float32")(parts)
    if dense_layers:
        output = keras.layers.Dense(1, dtype="float32")(output)
    else:
        output = keras.layers.GlobalAveragePooling1D()(keras.layers.Reshape((-1, 1))(output))
    model = read_rows(keras.Model([users, items], output))
    optimizer = getattr(gsnr_tf, name)(0.05, **{"gamma": 0.5, "sparse": "lazy", **arguments})
    model.compile(optimizer, "mse")
    rng = np.random.default_rng(0)
    x = [rng.integers(0, 50, (64, 2)), rng.integers(0, 50, (64, 3))]
    y = rng.normal(size=(64, 1)).astype("float32")
    # Batch i of this rank is part `rank` of global batch i.
    rows = np.arange(64).reshape(-1, size, 4)[:, rank].reshape(-1)
    model.fit([part[rows] for part in x], y[rows], 4, epochs=2, shuffle=False, verbose=0)
    keras.config.set_dtype_policy("float32")
    return {
        "weights": model.get_weights(),
        "slots": [slot.numpy() for slots in optimizer._slots.values() for slot in slots],
        "is_table": optimizer._layout.is_table,
        "bytes": optimizer.state_bytes,
        "names": [v.name for v in model.trainable_variables],
    }


def alone(ranks, name, arguments, *more):
    steps = ranks * arguments.get("gradient_accumulation_steps", 1)
    return fit(name, {**arguments, "gradient_accumulation_steps": steps}, *more)


def assert_alike(found, expected, rounding=2e-5):
    for what in ("weights", "slots"):
        for one, other in zip(found[what], expected[what], strict=True):
            scale = np.abs(other).max()
            np.testing.assert_allclose(one, other, rtol=rounding, atol=rounding * scale)


@pytest.mark.parametrize(
    ("optimizer", "sharding"),
    [
        *((name, "slices") for name in ("adam", "lamb")),
        *(pytest.param(name, "slices", marks=pytest.mark.slow) for name in ("sgd", "lars")),
        ("adam", "none"),
    ],
)
def test_two_ranks_are_one_process_that_has_their_batches(on_ranks, optimizer, sharding):
    name, arguments = OPTIMIZERS[optimizer]
    first, other = on_ranks(2, fit, name, {**arguments, "sharding": sharding})
    for one, same in zip(first["weights"], other["weights"]):
        np.testing.assert_array_equal(one, same)
    assert first["is_table"] == [name == "embeddings" for name in first["names"]]
    assert_alike(first, alone(2, name, arguments))


@pytest.mark.on_hosts(4, 1)
@pytest.mark.parametrize("hosts", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_accumulation_on_four_ranks(on_ranks, hosts):
    arguments = {"gradient_accumulation_steps": 2, "estimator": "robust"}
    found = on_ranks(4, fit, "GSNRAdam", arguments, hosts=hosts)
    expected = alone(4, "GSNRAdam", arguments)
    for rank in found:
        assert_alike(rank, expected)
    # Of the state, as of the table, a rank has its share.
    assert max(rank["bytes"] for rank in found) < expected["bytes"] / 2


def test_a_model_of_tables_alone(on_ranks):
    arguments = {"momentum": 0.9, "estimator": "robust"}
    first, _ = on_ranks(2, fit, "GSNRSGD", arguments, "float32", False)
    assert all(first["is_table"])
    assert_alike(first, alone(2, "GSNRSGD", arguments, "float32", False))


@pytest.mark.parametrize(
    "policy", ["mixed_float16", pytest.param("bfloat16", marks=pytest.mark.slow)]
)
def test_half_precision(on_ranks, policy):
    arguments = {"estimator": "robust", "communication_dtype": policy.split("_")[-1]}
    first, other = on_ranks(2, fit, "GSNRAdam", arguments, policy)
    for one, same in zip(first["weights"], other["weights"]):
        np.testing.assert_array_equal(one, same)
    assert all(np.isfinite(weight.astype("float32")).all() for weight in first["weights"])
    expected = alone(2, "GSNRAdam", {"estimator": "robust"}, policy)
    for one, other in zip(first["weights"], expected["weights"]):
        assert np.abs(one.astype("float32") - other.astype("float32")).max() < 0.1


def rows_on_one_rank_alone():
    """What becomes of a table that one rank does not use, and of one that none uses."""
    import keras
    import numpy as np
    import tensorflow as tf

    import gsnr_tf

    rank = gsnr_tf.rank()
    tables = [keras.Variable(np.ones((6, 2), "float32"), name="embeddings") for _ in range(3)]
    optimizer = gsnr_tf.GSNRSGD(0.5, gamma=1.0, ceiling=1.0, sparse="lazy")
    optimizer.build(tables)

    @tf.function
    def step():
        empty = tf.IndexedSlices(tf.zeros([0, 2]), tf.zeros([0], tf.int64))
        own = tf.IndexedSlices(tf.ones([1, 2]), tf.constant([4], tf.int64))
        gradients = [own if rank else empty, own if rank else None, empty]
        optimizer.apply_gradients(zip(gradients, tables))

    for _ in range(2):
        step()
    return [table.numpy() for table in tables]


def test_a_rank_without_rows_takes_part(on_ranks):
    for tables in on_ranks(2, rows_on_one_rank_alone):
        moved = np.ones((6, 2))
        moved[4] -= 2 * 0.5 / 2
        for table, expected in zip(tables, [moved, moved, np.ones((6, 2))]):
            np.testing.assert_allclose(table, expected)


def saved(path, name):
    """Trains, saves on rank 0, and says what all ranks hold."""
    import keras
    import numpy as np

    import gsnr_tf

    model = keras.Sequential(
        [keras.layers.Embedding(11, 3), keras.layers.Flatten(), keras.layers.Dense(1)]
    )
    model.compile(getattr(gsnr_tf, name)(0.1, sparse="lazy"), "mse")
    x = np.arange(8).reshape(4, 2) + gsnr_tf.rank()
    model.fit(x, np.ones([4, 1]), 4, epochs=3, verbose=0)
    if gsnr_tf.rank() == 0:
        model.save(path)
    slots = [s.numpy() for slots in model.optimizer._slots.values() for s in slots]
    return model.get_weights(), slots


def test_a_checkpoint_is_whole(on_ranks, tmp_path):
    path = tmp_path / "m.keras"
    (weights, slots), _ = on_ranks(2, saved, str(path), "GSNRAdam")
    loaded = keras.models.load_model(path)
    for one, other in zip(weights, loaded.get_weights()):
        np.testing.assert_array_equal(one, other)
    own = [s.numpy() for slots in loaded.optimizer._slots.values() for s in slots]
    assert len(own) == len(slots) == 9
    for one, other in zip(slots, own):
        np.testing.assert_array_equal(one, other)
    assert np.abs(slots[0]).max() > 0
