"""Updates on a GPU: the contract, as on the CPU."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import gsnr_tf
from tests.problems import EVERYTHING, TABLES, VARIANTS, assert_close, values

# A few samples are enough here.
pytestmark = pytest.mark.filterwarnings("ignore:.*samples an update")
K = 4
# See test_equals_reference.py.
ROUNDING = 2e-5


def compare_with_reference(device, row, problem, as_gradient, xla):
    """Trains on the device; returns by how much the weights are off, of their largest.

    Args:
        device: Such as "GPU:0".
        row: A `Row` of tests/problems.py.
        problem: A `Problem`.
        as_gradient: Function of an array and its variable's name: the gradient.
        xla: Whether XLA compiles the whole step.
    """
    expected, weights = row.make_reference(), problem.weights
    with tf.device(device):
        variables = problem.variables()
        optimizer = row.make(gradient_accumulation_steps=K)
        optimizer.build(variables)
        assert all(device in variable.value.device for variable in variables)

        @tf.function(jit_compile=xla)
        def step(sample):
            gradients = [as_gradient(g, name) for g, name in zip(sample, problem.names)]
            optimizer.apply_gradients(zip(gradients, variables))

        for samples in problem.samples:
            for sample in samples:
                step([tf.constant(g) for g in sample])
            weights = expected.step(weights, samples, paths=problem.names)
    off = 0.0
    for name, found, value in zip(problem.names, values(variables), weights):
        scale = np.abs(value).max()
        assert_close([found], [value], ROUNDING, ROUNDING * scale, name)
        off = max(off, np.abs(found - value).max() / scale)
    return off


@pytest.mark.parametrize("xla", [False, True], ids=["operations", "xla"])
@pytest.mark.parametrize("name", ["momentum", "adam decay", "lamb robust", "lars decay"])
def test_accumulation_equals_the_reference(device, name, xla, record_property):
    row = VARIANTS[name]
    off = compare_with_reference(device, row, EVERYTHING, lambda g, _: g, xla)
    record_property("figure", f"off by {off:.1e}")


def test_rows_of_a_table_equal_the_reference(device, record_property):
    """Each sample touches the same rows; what is not touched rests, in the reference too."""
    (touched,) = np.nonzero(TABLES.samples[0][0][0].any(axis=1))

    def as_gradient(gradient, name):
        if name != "embeddings":
            return gradient
        return tf.IndexedSlices(tf.gather(gradient, touched), tf.constant(touched))

    row = VARIANTS["adam"]
    make = row.make
    lazy = row._replace(optimizer=lambda **arguments: make(sparse="lazy", **arguments))
    off = compare_with_reference(device, lazy, TABLES, as_gradient, xla=False)
    record_property("figure", f"off by {off:.1e}")


def fit(device, policy="float32", epochs=3):
    """A small model after some updates on a device, and its loss in each epoch."""
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(256, 32)).astype("float32")
    with tf.device(device):
        model = keras.Sequential(
            [
                keras.Input((32,)),
                keras.layers.Dense(64, "relu"),
                keras.layers.Dense(1, dtype="float32"),
            ]
        )
        model.compile(gsnr_tf.GSNRAdam(0.01, gradient_accumulation_steps=K), "mse")
        history = model.fit(x, x[:, :1], 16, epochs=epochs, shuffle=False, verbose=0)
    keras.config.set_dtype_policy("float32")
    return model, history.history["loss"]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_learns_as_float32(device, policy, record_property):
    _, expected = fit(device)
    model, losses = fit(device, policy)
    assert all(device in weight.value.device for weight in model.weights)
    assert losses[-1] < 0.8 * losses[0]
    np.testing.assert_allclose(losses, expected, rtol=0.05)
    off = np.abs(np.divide(losses, expected) - 1).max()
    record_property("figure", f"loss off by {off:.1e}")


def test_an_update_needs_little_memory_beside_what_it_keeps(device, record_property):
    """Weights, gradient, three slots, and mean and m2 of the window: 7 numbers a parameter."""
    if "CPU" in device:
        pytest.skip("TensorFlow counts the memory of GPUs alone")
    number, shape = 8, (1000, 1000)
    with tf.device(device):
        variables = [keras.Variable(tf.ones(shape)) for _ in range(number)]
        optimizer = gsnr_tf.GSNRLamb(0.01, gradient_accumulation_steps=2)
        optimizer.build(variables)

        @tf.function
        def step():
            gradients = [tf.random.normal(shape) for _ in variables]
            optimizer.apply_gradients(zip(gradients, variables))

        for _ in range(4):
            step()
        tf.config.experimental.reset_memory_stats(device)
        for _ in range(2):
            step()
        peak = tf.config.experimental.get_memory_info(device)["peak"]
    numbers = peak / (4 * number * np.prod(shape))
    record_property("figure", f"peak of {numbers:.1f} numbers a parameter")
    assert numbers < 2 * 7
