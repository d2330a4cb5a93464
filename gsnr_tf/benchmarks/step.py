"""Time of an update under Horovod: Keras' optimizer, and GSNR both ways of sharding.

Every rank runs this; `gsnr-tf bench step` starts them. The contenders take turns, so
that other load on the machine meets all of them alike, and what counts is the median
of each round's ratio to the plain step: grouped allreduce, then Keras' optimizer.
"""

import argparse
import time

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf

import gsnr_tf

RULES = {
    "lamb": (keras.optimizers.Lamb, {}, gsnr_tf.GSNRLamb, {}),
    "adam": (keras.optimizers.Adam, {}, gsnr_tf.GSNRAdam, {}),
    "momentum": (
        keras.optimizers.SGD,
        {"momentum": 0.9},
        gsnr_tf.GSNRSGD,
        {"momentum": 0.9},
    ),
}


def shapes(elements, tensors):
    """Matrices and vectors in turn, as in dense layers, `elements` in all."""
    pairs = max(1, tensors // 2)
    side = max(1, int((elements / pairs) ** 0.5))
    return [shape for _ in range(pairs) for shape in ((side, side), (side,))]


def plain_step(rule, gradients, variables):
    """Reduces by one grouped allreduce and applies Keras' optimizer."""
    make, arguments, _, _ = RULES[rule]
    optimizer = make(1e-3, **arguments)
    optimizer.build(variables)

    def step():
        reduced = hvd.grouped_allreduce(
            [tf.identity(g) for g in gradients], op=hvd.Average, name="bench.plain"
        )
        optimizer.apply_gradients(zip(reduced, variables))

    return tf.function(step, autograph=False)


def gsnr_step(rule, gradients, variables, sharding):
    _, _, make, arguments = RULES[rule]
    optimizer = make(1e-3, sharding=sharding, **arguments)
    optimizer.build(variables)

    def step():
        optimizer.apply_gradients(
            zip([tf.identity(g) for g in gradients], variables)
        )

    return tf.function(step, autograph=False)


def measure(steps, rounds):
    """Seconds `[contender, round]`: of the slowest rank, after two untimed steps."""
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
    parser = argparse.ArgumentParser()
    parser.add_argument("--rule", choices=RULES)
    parser.add_argument("--elements", type=int)
    parser.add_argument("--tensors", type=int)
    parser.add_argument("--rounds", type=int)
    args = parser.parse_args(arguments)
    # A core for each rank, at best: more threads would measure who gets them.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2)
    ranks = gsnr_tf.size()

    def fresh(shape_list):
        return [keras.Variable(tf.random.normal(s), dtype="float32") for s in shape_list]

    layers = shapes(args.elements, args.tensors)
    gradients = [tf.Variable(tf.random.normal(shape)) for shape in layers]
    steps = {
        f"allreduce + Keras {args.rule}": plain_step(args.rule, gradients, fresh(layers)),
        f"GSNR {args.rule}, sharding=none": gsnr_step(
            args.rule, gradients, fresh(layers), "none"
        ),
        f"GSNR {args.rule}, sharding=slices": gsnr_step(
            args.rule, gradients, fresh(layers), "slices"
        ),
    }
    seconds = measure(list(steps.values()), args.rounds)
    if gsnr_tf.rank() == 0:
        elements = sum(int(np.prod(shape)) for shape in layers)
        print(f"{ranks} ranks, {elements:,} elements in {len(layers)} tensors")
        for name, own in zip(steps, seconds):
            ratio = np.median(own / seconds[0])
            print(f"  {name:<30} {1e3 * np.median(own):7.1f} ms   ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
