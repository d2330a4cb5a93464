"""A program for test_peers_at_the_end.py: rank 0 alone saves, in training and after it."""

import atexit
import json
import sys
import time

import keras
import numpy as np

import gsnr_tf

folder = sys.argv[1]
atexit.register(lambda: print(f"rank {gsnr_tf.rank()} of {gsnr_tf.size()} leaves", flush=True))
first = gsnr_tf.rank() == 0
x = np.random.default_rng(gsnr_tf.rank()).normal(size=(48, 20)).astype("float32")
models = {}
for sharding in ("none", "slices"):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(30), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((20,)), *layers])
    model.compile(optimizer=gsnr_tf.GSNRLamb(0.01, sharding=sharding), loss="mse")
    path = f"{folder}/{sharding}-at-{{batch}}.keras"
    saves = [keras.callbacks.ModelCheckpoint(path, save_freq=3)] if first else []
    model.fit(x, x[:, :1], batch_size=8, shuffle=False, verbose=0, callbacks=saves)
    models[sharding] = model
if first:
    from gsnr_tf.comm import steward

    (other,) = steward._state["others"]
    while not json.loads(other.ask("status"))["ended"]:
        time.sleep(0.01)
    for sharding, model in models.items():
        model.evaluate(x, x[:, :1], verbose=0)
        model.save(f"{folder}/{sharding}-at-the-end.keras")
