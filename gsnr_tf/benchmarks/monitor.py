"""What GSNRMonitor costs: updates with it and without it, in turns.

Every rank runs this; `gsnr-tf bench monitor` starts them. Two models of the same
layers train alike, one of them watched, its records written. They take turns update by
update, so that other load on the machine meets both alike. The cost is that of `every`
updates, one of them with a record, from the medians of either kind.
"""

import argparse
import tempfile
import time

import keras
import numpy as np
import tensorflow as tf

from gsnr_tf import comm
from gsnr_tf.benchmarks import contenders
from gsnr_tf.callbacks import GSNRMonitor
from gsnr_tf.optimizers import GSNRLamb

_WIDTH = 512


def trainer(sharding, layers, batch, monitor=None):
    """A callable that makes one update, as `fit` would, and its model."""
    keras.utils.set_random_seed(0)
    dense = [keras.layers.Dense(_WIDTH, activation="relu") for _ in range(layers)]
    model = keras.Sequential([keras.Input((_WIDTH,)), *dense, keras.layers.Dense(10)])
    options = {} if comm.size() > 1 else {"gradient_accumulation_steps": 2}
    model.compile(
        GSNRLamb(1e-3, sharding=sharding, **options),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    rng = np.random.default_rng(comm.rank())
    x = rng.normal(size=(batch, _WIDTH)).astype("float32")
    y = rng.integers(0, 10, size=batch)
    data = iter(tf.data.Dataset.from_tensors((x, y)).cache().repeat())
    callbacks = keras.callbacks.CallbackList(
        [monitor] if monitor else [], model=model, add_history=True
    )
    model.make_train_function()
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(0)

    def update():
        for call in range(model.optimizer.accumulation_steps):
            callbacks.on_train_batch_begin(call)
            logs = model.train_function(data)
            callbacks.on_train_batch_end(call, logs)

    return update, model


def measure(plain, watched, every, turns):
    """Seconds of single updates, after two untimed turns of `every` updates.

    Returns:
        Arrays: without a monitor; with one but no record; with a record.
    """
    seconds = np.zeros([2, (turns + 2) * every])
    for number in range(seconds.shape[1]):
        # Each goes first in every other update.
        for index in (0, 1) if number % 2 else (1, 0):
            start = time.perf_counter()
            (plain, watched)[index]()
            seconds[index, number] = time.perf_counter() - start
    without, with_monitor = seconds.reshape(2, turns + 2, every)[:, 2:]
    return without.ravel(), with_monitor[:, :-1].ravel(), with_monitor[:, -1]


def main(arguments=None):
    """Measures on this rank; rank 0 prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sharding", choices=["none", "slices", "auto"])
    parser.add_argument("--layers", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--every", type=int)
    parser.add_argument("--turns", type=int)
    args = parser.parse_args(arguments)
    contenders.use_one_core()
    with tempfile.TemporaryDirectory() as folder:
        monitor = GSNRMonitor(folder, every=args.every)
        plain, model = trainer(args.sharding, args.layers, args.batch)
        watched, _ = trainer(args.sharding, args.layers, args.batch, monitor)
        found = measure(plain, watched, args.every, args.turns)
    without, idle, recorded = (1e3 * np.median(seconds) for seconds in found)
    cost = ((args.every - 1) * idle + recorded) / (args.every * without)
    if comm.rank() == 0:
        print(
            f"{comm.size()} rank(s), sharding={args.sharding}, every={args.every}, "
            f"{model.count_params():,} parameters in {len(model.trainable_variables)} "
            f"tensors, {args.batch} examples a step and rank\n"
            f"  {without:.1f} ms an update without, {idle:.1f} with, {recorded:.1f} with "
            f"a record: ratio {cost:.3f}"
        )


if __name__ == "__main__":
    main()
