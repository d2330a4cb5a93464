"""What GSNRMonitor costs: a train step with it and without it, in turns.

Every rank runs this; `gsnr-tf bench monitor` starts them. Two models of the same
layers train alike, one of them watched, its records written. They take turns of
`every` steps, so that each turn of the watched one has one record, and what counts is
the median over turns of the ratio of their times.
"""

import argparse
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf

import gsnr_tf
from gsnr_tf.callbacks import GSNRMonitor

_WIDTH = 512


def trainer(sharding, layers, batch, monitor=None):
    """A callable that makes a number of train steps, as `fit` would, and its model."""
    keras.utils.set_random_seed(0)
    dense = [keras.layers.Dense(_WIDTH, activation="relu") for _ in range(layers)]
    model = keras.Sequential([keras.Input((_WIDTH,)), *dense, keras.layers.Dense(10)])
    options = {} if gsnr_tf.size() > 1 else {"gradient_accumulation_steps": 2}
    model.compile(
        gsnr_tf.GSNRLamb(1e-3, sharding=sharding, **options),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    rng = np.random.default_rng(gsnr_tf.rank())
    x = rng.normal(size=(batch, _WIDTH)).astype("float32")
    y = rng.integers(0, 10, size=batch)
    data = iter(tf.data.Dataset.from_tensors((x, y)).cache().repeat())
    callbacks = keras.callbacks.CallbackList(
        [monitor] if monitor else [], model=model, add_history=True
    )
    model.make_train_function()
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(0)

    def train(steps):
        for step in range(steps):
            callbacks.on_train_batch_begin(step)
            logs = model.train_function(data)
            callbacks.on_train_batch_end(step, logs)

    return train, model


def measure(trainers, steps, turns):
    """Seconds `[trainer, turn]`, after two untimed turns."""
    seconds = np.zeros([len(trainers), turns])
    for turn in range(-2, turns):
        # Each goes first in every other turn.
        for index in sorted(range(len(trainers)), reverse=turn % 2 == 1):
            start = time.perf_counter()
            trainers[index](steps)
            if turn >= 0:
                seconds[index, turn] = time.perf_counter() - start
    return seconds


def main(arguments=None):
    """Measures on this rank; rank 0 prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sharding", choices=["none", "slices"])
    parser.add_argument("--layers", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--every", type=int)
    parser.add_argument("--turns", type=int)
    args = parser.parse_args(arguments)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        monitor = GSNRMonitor(folder, every=args.every)
        plain, model = trainer(args.sharding, args.layers, args.batch)
        watched, _ = trainer(args.sharding, args.layers, args.batch, monitor)
        # An update takes as many steps as the model accumulates.
        steps = args.every * model.optimizer.accumulation_steps
        without, with_monitor = measure([plain, watched], steps, args.turns)
    if gsnr_tf.rank() == 0:
        ratios = with_monitor / without
        low, high = np.percentile(ratios, [25, 75])
        print(
            f"{gsnr_tf.size()} rank(s), sharding={args.sharding}, every={args.every}, "
            f"{model.count_params():,} parameters in {len(model.trainable_variables)} "
            f"tensors, {args.batch} examples a step and rank\n"
            f"  {1e3 * np.median(without) / steps:.1f} ms a step without, ratio with "
            f"{np.median(ratios):.3f} ({low:.3f} to {high:.3f}, the middle half of "
            f"{args.turns} turns)"
        )


if __name__ == "__main__":
    main()
