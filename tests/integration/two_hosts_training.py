"""A program for test_run.py: trains a little, says what was learned, then sleeps."""

import json
import os
import time

import keras
import numpy as np

import gsnr_tf

keras.utils.set_random_seed(gsnr_tf.rank())
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile(optimizer=gsnr_tf.GSNRSGD(0.1), loss="mse")
x = np.random.default_rng(gsnr_tf.rank()).normal(size=(8, 4)).astype("float32")
model.fit(x, x[:, :1], batch_size=4, verbose=0)
told = {
    "rank": gsnr_tf.rank(),
    "size": gsnr_tf.size(),
    "host": os.environ["HOROVOD_HOSTNAME"],
}
print(json.dumps({**told, "weights": model.get_weights()[0].ravel().tolist()}), flush=True)
print("asleep", flush=True)
time.sleep(600)
