"""Memory of an update under Horovod, plain and with GSNR.

Every rank runs this; `gsnr-tf bench step` starts it anew for each contender, since
TensorFlow keeps what it has once taken: what an update needs at its peak is what the
process has grown by.
"""

import ctypes
import functools

import keras
import tensorflow as tf

import gsnr_tf
from gsnr_tf.benchmarks import contenders

_MB = 1e6


def held_bytes():
    """What this process holds now, without what malloc keeps for later."""
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/status", encoding="ascii") as status:
        (line,) = (line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def beyond_gradients(make, rule, layers):
    """Bytes of state, and bytes an update needs besides it, weights and gradients.

    The gradients are made in the update, as by backward. The second number is by how
    much the process has grown since it has only made them.
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
    for _ in range(3):
        backward()
    before = held_bytes()
    for _ in range(3):
        update()
    return state, held_bytes() - before


def main(arguments=None):
    """Measures on this rank; rank 0 prints."""
    args = contenders.options().parse_args(arguments)
    rank = gsnr_tf.rank()
    layers = contenders.shapes(args.elements, args.tensors)
    name, make = list(contenders.chosen(args.rule, args.dtypes))[args.contender]
    state, besides = beyond_gradients(make, args.rule, layers)
    if rank == 0:
        if not args.contender:
            print(f"  {'':<24} {'state MB':>9} {'besides, at peak MB':>20}")
        print(f"  {name:<24} {state / _MB:9.1f} {besides / _MB:20.1f}", flush=True)


if __name__ == "__main__":
    main()
