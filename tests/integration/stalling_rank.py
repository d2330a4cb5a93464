"""A program for test_stall.py: after five updates something befalls rank 1 of 2."""

import os
import signal
import sys
import time

import keras
import numpy as np
import tensorflow as tf

import gsnr_tf

way = sys.argv[1]
rank = gsnr_tf.rank()
keras.utils.set_random_seed(0)
x = np.random.default_rng(rank).normal(size=(80, 20)).astype("float32")


def say(text):
    print(f"rank {rank} {text}", flush=True)


class Leaves(Exception):
    """Ends `fit`."""


class Befall(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if rank == 0 or batch != 4:
            return
        say(f"now: {way}")
        if way in ("leaves", "ends"):
            # As where its data has fewer batches than that of the others.
            raise Leaves
        if way == "is paused":
            os.kill(os.getpid(), signal.SIGSTOP)
        if way == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if way == "raises":
            raise ValueError("no such file")
        if way == "evaluates":
            self.model.evaluate(x, x[:, :1], batch_size=8, verbose=0, callbacks=[Slow()])


def has_a_batch_fewer():
    """As where ranks read files of their own; both wait for each other, in two places."""
    rows = x[: len(x) - 8 * rank]
    callbacks = [gsnr_tf.callbacks.MetricAverageCallback()] if way == "averages" else []
    model.fit(rows, rows[:, :1], batch_size=8, verbose=0, callbacks=callbacks)
    dataset = tf.data.Dataset.from_tensor_slices((x, x[:, :1])).batch(8)
    model.fit(gsnr_tf.shard(dataset), verbose=0)


class Slow(keras.callbacks.Callback):
    def on_test_batch_end(self, batch, logs=None):
        # In `evaluate`, and not in a callback of it, for most of the time.
        time.sleep(float(os.environ.get("SLOW", "1")))


layers = [keras.layers.Dense(30), keras.layers.Dense(1)]
model = keras.Sequential([keras.Input((20,)), *layers])
sharding = os.environ.get("SHARDING", "slices")
optimizer = gsnr_tf.GSNRSGD(0.01, sharding=sharding)
model.compile(optimizer=optimizer, loss="mse")
if way in ("averages", "shards"):
    has_a_batch_fewer()
try:
    model.fit(x, x[:, :1], batch_size=8, epochs=2, verbose=0, callbacks=[Befall()])
except Leaves:
    say("has left fit")
    if way == "leaves":
        time.sleep(600)
else:
    say("is done")
