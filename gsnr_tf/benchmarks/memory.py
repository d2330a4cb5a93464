"""Memory of an update under Horovod, plain and with GSNR.

Every rank runs this; `gsnr-tf bench step` starts it anew for each contender. What is
counted is what TensorFlow's allocator has given out: neither compiled code nor what the
allocator keeps for later.
"""

import functools
import os

import keras
import tensorflow as tf

from gsnr_tf import comm
from gsnr_tf.benchmarks import contenders

_MB = 1e6


def beyond_gradients(make, rule, layers):
    """Bytes of state, bytes an update needs besides it at its peak, and bytes it keeps.

    The gradients are made in the update, as by backward, and not counted: the peak is
    that of updates less that of steps which only make the gradients. What is kept is
    Horovod's buffer, in which it fuses what is small or ready at the same time.
    """
    held = [tf.Variable(tf.random.normal(shape)) for shape in layers]
    one = tf.Variable(1.0)

    def gradients():
        return [gradient * one for gradient in held]

    @functools.partial(tf.function, autograph=False)
    def backward():
        made = gradients()
        with tf.control_dependencies(made):
            return [tf.reduce_sum(gradient) for gradient in made]

    variables = [keras.Variable(tf.random.normal(s), dtype="float32") for s in layers]
    state, update = make(rule, gradients, variables)
    without, before = peak_and_rest(backward)
    peak, rest = peak_and_rest(update)
    return state, peak - without, rest - before


def peak_and_rest(step):
    """Bytes beyond those at rest that the step takes, and those at rest."""
    device = "GPU:0" if tf.config.list_physical_devices("GPU") else "CPU:0"
    for _ in range(2):
        step()
    rest = tf.config.experimental.get_memory_info(device)["current"]
    tf.config.experimental.reset_memory_stats(device)
    for _ in range(5):
        step()
    return tf.config.experimental.get_memory_info(device)["peak"] - rest, rest


def count_memory():
    """To be called first: the allocator of a CPU that keeps count is made with the first
    tensor."""
    os.environ["TF_CPU_ALLOCATOR_USE_BFC"] = "1"


def main(arguments=None):
    """Measures on this rank; rank 0 prints."""
    args = contenders.options().parse_args(arguments)
    count_memory()
    contenders.use_one_core()
    rank = comm.rank()
    layers = contenders.shapes(args.elements, args.tensors)
    name, make = list(contenders.chosen(args.rule, args.dtypes, args.elements))[args.contender]
    sizes = beyond_gradients(make, args.rule, layers)
    if rank == 0:
        if not args.contender:
            print(f"  {'':<24} {'state MB':>9} {'besides, at peak':>17} {'kept':>7}")
        state, besides, kept = (size / _MB for size in sizes)
        print(f"  {name:<24} {state:9.1f} {besides:17.1f} {kept:7.1f}", flush=True)


if __name__ == "__main__":
    main()
