"""Train steps are ready for accelerators, as their graphs say on a machine without one.

No update copies to the host, and Horovod's operations, which XLA cannot compile, stand
outside of its programs.
"""

import keras
import pytest
import tensorflow as tf

from tests.graphs import copying_to_the_host, horovods, operations


def train_step(optimizer, policy="float32", **arguments):
    """The graph of a model with a table, and layers that are large enough for XLA to compile
    the update."""
    import keras
    import tensorflow as tf

    import gsnr_tf

    keras.config.set_dtype_policy(policy)
    ids, numbers = keras.Input((2,), dtype="int64"), keras.Input((400,))
    parts = [
        keras.layers.Flatten()(keras.layers.Embedding(50, 4)(ids)),
        keras.layers.Dense(400)(numbers),
    ]
    scores = keras.layers.Dense(1, dtype="float32")(keras.layers.Concatenate()(parts))
    model = keras.Model([ids, numbers], scores)
    model.compile(getattr(gsnr_tf, optimizer)(0.1, sparse="lazy", **arguments), "mse")
    graph = traced(model, (tf.TensorSpec([8, 2], tf.int64), tf.TensorSpec([8, 400])))
    keras.config.set_dtype_policy("float32")
    return graph


def traced(model, features):
    """The graph of what `fit` compiles: a `GraphDef`, as bytes."""
    import tensorflow as tf

    step = tf.function(lambda x, y: model.train_step((x, y)))
    graph = step.get_concrete_function(features, tf.TensorSpec([8, 1])).graph
    return graph.as_graph_def().SerializeToString()


def read(graph):
    return operations(tf.compat.v1.GraphDef.FromString(graph))


def assert_update_is_compiled(found):
    """Else there would be nothing to find in XLA's programs."""
    inside = {one.type for one in found if one.compiled}
    assert {"Mul", "Sqrt", "RealDiv"} <= inside


def test_accumulation_stays_on_the_device():
    found = read(train_step("GSNRLamb", "mixed_float16", gradient_accumulation_steps=2))
    assert_update_is_compiled(found)
    assert copying_to_the_host(found) == []
    assert horovods(found) == []


@pytest.mark.parametrize(
    ("optimizer", "sharding", "collective"),
    [("GSNRLamb", "slices", "HorovodAlltoall"), ("GSNRAdam", "none", "HorovodAllgather")],
)
def test_ranks_copy_nothing_and_keep_collectives_out_of_xla(
    on_ranks, optimizer, sharding, collective
):
    arguments = {"sharding": sharding, "gradient_accumulation_steps": 2}
    for graph in on_ranks(2, lambda: train_step(optimizer, **arguments)):
        found = read(graph)
        assert_update_is_compiled(found)
        assert copying_to_the_host(found) == []
        assert {"HorovodAllreduce", collective} <= {one.type for one in horovods(found)}
        assert [one for one in horovods(found) if one.compiled] == []


class Violations(keras.layers.Layer):
    """Python, a device that was asked for, and an operation without a kernel."""

    def call(self, x):
        x = tf.ensure_shape(tf.py_function(lambda x: x + 0.0, [x], x.dtype), x.shape)
        with tf.device("CPU:0"):
            x = tf.atan(x)
        with tf.control_dependencies([tf.strings.as_string(x)]):
            return tf.identity(x)


def test_a_copy_to_the_host_is_found():
    model = keras.Sequential([keras.Input((4,)), Violations(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    graph = traced(model, tf.TensorSpec([8, 4]))
    told = {one.type for one in copying_to_the_host(read(graph))}
    assert told == {"EagerPyFunc", "Atan", "AsString"}


def test_a_collective_inside_of_xla_is_found_however_deep_it_is():
    @tf.function
    def inner(x):
        return tf.negative(x)

    @tf.function(jit_compile=True)
    def compiled(x):
        return tf.cond(x[0] > 0, lambda: inner(x), lambda: x)

    @tf.function
    def step(x):
        return inner(x) + compiled(x)

    graph = step.get_concrete_function(tf.TensorSpec([2])).graph.as_graph_def()
    for function in graph.library.function:
        for node in function.node_def:
            node.op = "HorovodAllreduce" if node.op == "Neg" else node.op
    found = horovods(operations(graph))
    assert sorted(one.compiled for one in found) == [False, True]
