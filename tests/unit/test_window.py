"""Windows of accumulated micro-batches, under `fit`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import gsnr_tf

X = np.random.default_rng(0).normal(size=(24, 3)).astype("float32")
Y = X @ np.array([[1.0], [-2.0], [0.5]], "float32")


def trained(dataset, steps, replicas=1):
    """Weights after three epochs."""
    keras.utils.set_random_seed(1)
    strategy = tf.distribute.get_strategy()
    if replicas > 1:
        devices = [f"CPU:{index}" for index in range(replicas)]
        strategy = tf.distribute.MirroredStrategy(devices)
    with strategy.scope():
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        optimizer = gsnr_tf.GSNRSGD(0.1, gradient_accumulation_steps=steps)
        model.compile(optimizer=optimizer, loss="mse")
    model.fit(dataset, epochs=3, verbose=0)
    return model.get_weights()


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("batch", [6, 8], ids=["whole windows", "a window left over"])
def test_the_end_of_a_dataset_of_unknown_size_adds_no_sample(batch, replicas):
    """`fit` finds that end by a train step that has no data."""
    known = tf.data.Dataset.from_tensor_slices((X, Y)).batch(batch)
    unknown = known.filter(lambda x, y: True)
    assert unknown.cardinality() == tf.data.UNKNOWN_CARDINALITY
    expected = trained(known, 2, replicas)
    for value, other in zip(trained(unknown, 2, replicas), expected):
        np.testing.assert_array_equal(value, other)
