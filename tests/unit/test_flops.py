"""Counting floating-point operations: against what one counts by hand."""

import keras
import pytest
import tensorflow as tf

from gsnr_tf.engine import flops

layers = keras.layers


def counted(shape, *stack, batch=4):
    model = keras.Sequential([keras.Input(shape), *stack])
    model.compile("sgd", "mse")
    specs = [tf.TensorSpec((batch, *s)) for s in (shape, model.output_shape[1:])]
    return flops.count(model, specs)


# The first layer has no gradient of its input: two products, the others have three.
@pytest.mark.parametrize(
    "found, expected",
    [
        (
            lambda: counted((8,), layers.Dense(16), layers.Dense(5)),
            2 * 4 * (2 * 8 * 16 + 3 * 16 * 5),
        ),
        (
            lambda: counted((9, 8, 3), layers.Conv2D(5, 3), layers.Conv2D(2, 3)),
            2 * 4 * (2 * 7 * 6 * 5 * 27 + 3 * 5 * 4 * 2 * 45),
        ),
        (
            lambda: counted((9, 8, 3), layers.Conv2D(5, 3, strides=2, padding="same")),
            2 * 4 * 2 * 5 * 4 * 5 * 27,
        ),
        (
            lambda: counted((9, 8, 3), layers.DepthwiseConv2D(3)),
            2 * 4 * 2 * 7 * 6 * 3 * 9,
        ),
        (
            lambda: counted((10, 8), layers.EinsumDense("abc,cd->abd", (10, 6))),
            2 * 4 * 2 * 10 * 8 * 6,
        ),
        (
            lambda: counted((7, 6, 5, 2), layers.Conv3D(3, 2)),
            2 * 4 * 2 * 6 * 5 * 4 * 3 * 16,
        ),
    ],
    ids=["dense", "convolution", "strides", "depthwise", "einsum", "3d"],
)
def test_products_are_counted(found, expected):
    assert found() == expected


def test_products_of_batches_of_matrices():
    def attention(q, k):
        return tf.matmul(q, k, transpose_b=True)

    specs = [tf.TensorSpec((3, 5, 7)), tf.TensorSpec((3, 4, 7))]
    nodes = tf.function(attention).get_concrete_function(*specs).graph.get_operations()
    assert sum(map(flops.operations_of, nodes)) == 2 * 3 * 5 * 4 * 7


def test_memory_that_was_used_is_seen():
    before = flops.peak_memory()
    held = bytearray(b"x") * (2**28)
    assert flops.peak_memory() >= min(before, 2**30) and len(held) == 2**28
    assert flops.peak_memory() > 2**27
