"""The embedding that reads rows is Keras' in all but the cost."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import gsnr_tf
from gsnr_tf.layers import Embedding, read_rows

INPUTS = {
    "dense": np.array([[1, 5], [0, -1], [5, 5]]),
    "floats": np.array([[1.0, 5.0], [0.0, 2.0]]),
    "ragged": tf.ragged.constant([[1, 5, 2], [], [4]]),
    "sparse": tf.sparse.from_dense([[1, 0], [3, 2]]),
}


def pair(**arguments):
    """One of each, with the same weights."""
    ours, keras_own = (make(6, 3, **arguments) for make in (Embedding, keras.layers.Embedding))
    for layer in (ours, keras_own):
        layer.build()
    ours.set_weights(keras_own.get_weights())
    return ours, keras_own


def flat(outputs):
    return outputs.flat_values if isinstance(outputs, tf.RaggedTensor) else outputs


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "bfloat16", "float64"])
@pytest.mark.parametrize("kind", INPUTS)
def test_outputs_and_gradients(kind, dtype):
    ours, keras_own = pair(dtype=dtype)
    found = []
    for layer in (ours, keras_own):
        with tf.GradientTape() as tape:
            outputs = flat(layer(INPUTS[kind]))
            loss = tf.reduce_sum(tf.square(tf.cast(outputs, tf.float32)))
        gradient = tape.gradient(loss, layer.embeddings.value)
        assert isinstance(gradient, tf.IndexedSlices)
        found.append((outputs, tf.cast(tf.convert_to_tensor(gradient), tf.float32)))
    assert found[0][0].dtype == found[1][0].dtype == ours.compute_dtype
    for one, other in zip(*found):
        np.testing.assert_allclose(one, other, rtol=1e-2 if dtype != "float64" else 1e-6)


@pytest.mark.parametrize("layer", [Embedding, keras.layers.Embedding])
def test_only_keras_own_reads_the_table(layer):
    made = layer(6, 3)
    made.build()
    graph = tf.function(made.call).get_concrete_function(tf.constant([1])).graph
    kinds = {operation.type for operation in graph.get_operations()}
    assert ("ReadVariableOp" in kinds) == (layer is keras.layers.Embedding)
    assert ("ResourceGather" in kinds) == (layer is Embedding)


def test_a_model_is_changed_where_it_is(tmp_path):
    class Theirs(keras.layers.Embedding):
        pass

    inputs = keras.Input((2,), dtype="int32")
    shared = keras.layers.Embedding(6, 3)
    block = keras.Sequential([keras.layers.Embedding(6, 3, mask_zero=True)])
    outputs = shared(inputs) + block(inputs) + Theirs(6, 3)(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(outputs)))
    before = model(INPUTS["dense"])
    assert read_rows(model) is model
    assert type(shared) is type(block.layers[0]) is Embedding
    assert [type(layer) for layer in model.layers].count(Theirs) == 1
    np.testing.assert_array_equal(model(INPUTS["dense"]), before)
    model.compile(gsnr_tf.GSNRSGD(0.1, gradient_accumulation_steps=2), "mse")
    model.fit(INPUTS["dense"], np.ones([3, 1]), batch_size=1, verbose=0)
    model.save(tmp_path / "m.keras")
    with keras.saving.custom_object_scope({"Theirs": Theirs}):
        loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded(INPUTS["dense"]), model(INPUTS["dense"]))
    assert type(loaded.get_layer(shared.name)) is Embedding


def test_lora_reads_as_keras_does():
    ours, keras_own = pair()
    for layer in (ours, keras_own):
        layer.enable_lora(2)
        layer.lora_embeddings_b.assign(np.ones([2, 3]))
        layer.lora_embeddings_a.assign(np.ones([6, 2]))
    np.testing.assert_allclose(ours(INPUTS["dense"]), keras_own(INPUTS["dense"]))
