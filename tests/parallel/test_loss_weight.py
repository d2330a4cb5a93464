"""Ranks weigh by what their losses were divided by: the weights of one process."""

import numpy as np
import pytest

# 21 rows in batches of 8, of which 5 are left for the last.
ROWS, BATCH, EPOCHS = 21, 8, 3


def make_data(kind):
    import tensorflow as tf

    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 4, 3)).astype("float32")
    y = (x @ [[1.0], [2.0], [3.0]] + np.arange(ROWS)[:, None, None]).astype("float32")
    # Rows of unequal length: what is behind them is masked.
    lengths = rng.integers(1, 5, ROWS)
    x[np.arange(4)[None] >= lengths[:, None]] = 0
    weights = rng.uniform(0.1, 2.0, (ROWS, 4)).astype("float32")
    parts = (x, y, weights) if "weight" in kind else (x, y)
    return tf.data.Dataset.from_tensor_slices(parts).batch(BATCH)


def trained(kind, optimizer, shared):
    import keras

    import gsnr_tf

    layers = [keras.Input((4, 3)), keras.layers.Dense(1, kernel_initializer="ones")]
    if kind == "mask":
        layers.insert(1, keras.layers.Masking())
    if kind == "rows":
        layers.append(keras.layers.GlobalAveragePooling1D())
    model = keras.Sequential(layers)
    reduction = {
        "sum": "sum", "weighted": "mean_with_sample_weight"
    }.get(kind, "sum_over_batch_size")  # fmt: skip
    model.compile(optimizer=optimizer, loss=keras.losses.MeanSquaredError(reduction))
    data = make_data(kind)
    if kind == "rows":
        data = data.map(lambda x, y: (x, y[:, 0]))
    model.fit(gsnr_tf.shard(data) if shared else data, epochs=EPOCHS, verbose=0)
    return np.concatenate([w.ravel() for w in model.get_weights()])


def both(kind, name, arguments):
    import keras

    import gsnr_tf

    rate = 0.002 if kind == "sum" else 0.05
    plain = keras.optimizers.SGD(rate)
    if name == "keras":
        found = trained(kind, gsnr_tf.DistributedOptimizer(keras.optimizers.SGD(rate)), True)
    else:
        found = trained(kind, gsnr_tf.GSNRSGD(rate, gamma=1.0, **arguments), True)
    return found, trained(kind, plain, False)


@pytest.mark.parametrize("kind", ["rows", "mask", "weighted", "sample_weight", "sum"])
@pytest.mark.parametrize(
    "name, arguments",
    [("gsnr", {}), ("gsnr", {"sharding": "none"}), ("keras", {})],
)
def test_ranks_train_as_one_process(on_ranks, kind, name, arguments):
    (first, alone), (second, _) = on_ranks(2, both, kind, name, arguments)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, alone, rtol=2e-5, atol=2e-6)


def test_halves_carry_weights_exactly(on_ranks):
    found = on_ranks(2, both, "rows", "gsnr", {"communication_dtype": "bfloat16"})
    (first, alone), (second, _) = found
    np.testing.assert_array_equal(first, second)
    # Gradients are rounded to 8 bits, weights of samples are not.
    np.testing.assert_allclose(first, alone, rtol=2e-2, atol=2e-2)
