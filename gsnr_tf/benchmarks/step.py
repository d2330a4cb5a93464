"""Time of an update under Horovod, plain and with GSNR.

Every rank runs this; `gsnr-tf bench step` starts them. The contenders take turns, so
that other load on the machine meets all of them alike, and what counts is the median
of each round's ratio to the plain update: grouped allreduce, then Keras' optimizer.
"""

import time

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf

from gsnr_tf import comm
from gsnr_tf.benchmarks import contenders


def measure(steps, rounds):
    """Seconds `[contender, round]`: of the slowest rank, after two untimed updates."""
    seconds = np.zeros([len(steps), rounds])
    for step in steps:
        step()
        step()
    for turn in range(rounds):
        for index, step in enumerate(steps):
            hvd.allreduce(tf.zeros([1]), name="bench.start")
            start = time.perf_counter()
            step()
            seconds[index, turn] = time.perf_counter() - start
    return hvd.allreduce(tf.constant(seconds), op=hvd.Max, name="bench.slowest").numpy()


def main(arguments=None):
    """Measures on this rank; rank 0 prints."""
    args = contenders.options().parse_args(arguments)
    contenders.use_one_core()
    ranks = comm.size()
    layers = contenders.shapes(args.elements, args.tensors)
    held = [tf.Variable(tf.random.normal(shape)) for shape in layers]
    steps = {}
    for name, make in contenders.chosen(args.rule, args.dtypes, args.elements):
        variables = [keras.Variable(tf.random.normal(s), dtype="float32") for s in layers]
        _, steps[name] = make(args.rule, lambda: [tf.identity(g) for g in held], variables)
    seconds = measure(list(steps.values()), args.rounds)
    if comm.rank() == 0:
        elements = sum(int(np.prod(shape)) for shape in layers)
        print(f"{ranks} ranks, {elements:,} elements in {len(layers)} tensors")
        print(f"  {'':<24} {'ms':>9} {'ratio':>7}")
        for name, own in zip(steps, seconds):
            ratio = np.median(own / seconds[0])
            print(f"  {name:<24} {1e3 * np.median(own):9.1f} {ratio:7.2f}")


if __name__ == "__main__":
    main()
