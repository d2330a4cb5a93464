"""Floating-point operations, time and memory of an update: `flops_profiler`."""

import math
import resource
import sys
import time

import tensorflow as tf


def count(model, specs):
    """Floating-point operations of forward and backward pass on one micro-batch.

    Matrix products and convolutions, of which a multiplication and an addition are two;
    what goes through elements one by one is small beside them. The body of a loop
    counts once. (TensorFlow's own profiler counts the gradient of a convolution twice,
    and `einsum` not at all.)

    Args:
        model: A compiled `keras.Model`.
        specs: `(x, y)` or `(x, y, sample_weight)` of `tf.TensorSpec`, batch included.
    """

    def forward_and_backward(x, y=None, sample_weight=None):
        with tf.GradientTape() as tape:
            predicted = model(x, training=True)
            loss = model.compute_loss(x, y, predicted, sample_weight)
        gradients = tape.gradient(loss, model.trainable_weights)
        return [gradient for gradient in gradients if gradient is not None]

    traced = tf.function(forward_and_backward, autograph=False)
    graph = traced.get_concrete_function(*specs).graph
    return sum(map(operations_of, _needed(graph)))


def _needed(graph):
    """Nodes that the outputs depend on; TensorFlow runs no others.

    The gradient of the input is in the graph of many layers, and nobody asks for it.
    """
    found, waiting = set(), [tensor.op for tensor in graph.outputs]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [*node.control_inputs, *(tensor.op for tensor in node.inputs)]
    return found


def operations_of(node):
    """Floating-point operations of a node of a graph, 0 for other than products."""
    kind, inputs, output = node.type, node.inputs, node.outputs[:1]
    if kind == "MatMul":
        inner = inputs[0].shape[0 if node.get_attr("transpose_a") else 1]
        return 2 * _size(output[0]) * inner
    if kind.startswith("BatchMatMul"):
        inner = inputs[0].shape[-2 if node.get_attr("adj_x") else -1]
        return 2 * _size(output[0]) * inner
    if kind == "Einsum":
        return _einsum(node)
    if not kind.startswith(("Conv2D", "Conv3D", "DepthwiseConv2dNative")):
        return 0
    # Each element of what the convolution yields is a product with the kernel, and so
    # are both gradients.
    kernel = output[0] if "BackpropFilter" in kind else inputs[1]
    yielded = inputs[2] if "Backprop" in kind else output[0]
    over = kernel.shape[:-2] if kind.startswith("Depthwise") else kernel.shape[:-1]
    return 2 * _size(yielded) * math.prod(over)


def _size(tensor):
    return math.prod(tensor.shape)


def _einsum(node):
    """2 for each combination of indices."""
    terms = node.get_attr("equation").decode().split("->")[0].split(",")
    sizes = {}
    for term, tensor in zip(terms, node.inputs):
        # Keras puts the batch into the dots.
        dots = len(tensor.shape) - len(term.replace("...", ""))
        before, _, after = term.partition("...")
        indices = [*before, *(range(dots) if "..." in term else ""), *after]
        sizes.update(zip(indices, tensor.shape))
    return 2 * math.prod(sizes.values())


def peak_memory():
    """Most bytes that this process has used: of its first GPU, else of the host."""
    gpus = tf.config.list_logical_devices("GPU")
    if gpus:
        return tf.config.experimental.get_memory_info(gpus[0].name)["peak"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, Linux KiB.
    return peak if sys.platform == "darwin" else 1024 * peak


class FlopsProfiler:
    """Measures one update and writes what it found.

    Args:
        engine: The `Engine`.
        step: Int, number of the update, from 1.
        output: Path of a file, or `None` for standard output.
    """

    def __init__(self, engine, step, output):
        self._engine, self._step, self._output = engine, step, output
        self._seconds = self._calls = 0

    def begin(self):
        """Before each micro-batch."""
        self._began = time.perf_counter()

    def end(self):
        """After each micro-batch."""
        self._seconds += time.perf_counter() - self._began
        self._calls += 1

    def update(self, communicator, specs, first):
        """After each update; all ranks take part in that which is profiled."""
        engine = self._engine
        seconds, self._seconds = self._seconds, 0
        if engine.global_steps != self._step:
            return
        operations = count(engine.model, specs) * engine.gradient_accumulation_steps()
        reports = communicator.gather((operations, seconds, peak_memory()))
        if first:
            text = "".join(
                f"rank {rank}: {number:.4g} floating-point operations in update "
                f"{self._step}, {1e3 * time_:.1f} ms, {number / time_:.4g} a second, "
                f"peak memory {memory / 2**20:.0f} MiB\n"
                for rank, (number, time_, memory) in enumerate(reports)
            )
            if self._output:
                with open(self._output, "w", encoding="utf-8") as file:
                    file.write(text)
            else:
                print(text, end="", flush=True)
