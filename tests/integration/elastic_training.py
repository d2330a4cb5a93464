"""A program for test_elastic.py: trains, dies or calls for another host on schedule.

    python elastic_training.py FOLDER SHARDING

Writes a line of JSON for each batch to FOLDER/log-PID. FOLDER/hosts is what the
discovery script prints.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import gsnr_tf

FOLDER, SHARDING = Path(sys.argv[1]), sys.argv[2]
HOST = os.environ["HOROVOD_HOSTNAME"]
EPOCHS, BATCHES = 3, 8


def add_host():
    hosts = FOLDER / "hosts"
    hosts.with_suffix(".new").write_text(hosts.read_text() + "127.1:2\n")
    hosts.with_suffix(".new").rename(hosts)


def weights():
    return [v.numpy() for v in model.trainable_variables]


class Log(keras.callbacks.Callback):
    def __init__(self, state):
        super().__init__()
        self._state = state
        self._log = (FOLDER / f"log-{os.getpid()}").open("a")
        self._first = state.batch

    def on_train_batch_begin(self, batch, logs=None):
        epoch, batch = self._state.epoch, self._first + batch
        if (HOST, epoch, batch) == ("127.0.0.1", 0, 7):
            if SHARDING == "slices":  # which need two ranks
                add_host()
            os._exit(3)
        if (epoch, batch) == (1, 4) and gsnr_tf.size() == 1:
            add_host()
            # Until horovodrun has seen it: then the commit does not return.
            while True:
                time.sleep(0.1)
                self._state.commit()

    def on_train_batch_end(self, batch, logs=None):
        state = self._state
        line = {
            "rank": gsnr_tf.rank(),
            "size": gsnr_tf.size(),
            "epoch": state.epoch,
            "batch": self._first + batch,
            "iterations": int(self.model.optimizer.iterations),
            "samples": self.model.optimizer.samples,
            "weights": hashlib.sha256(b"".join(w.tobytes() for w in weights())).hexdigest(),
        }
        print(json.dumps(line), file=self._log, flush=True)

    def on_epoch_end(self, epoch, logs=None):
        self._first = 0


@gsnr_tf.elastic_run
def train(state):
    if state.epoch == state.batch == 0 and gsnr_tf.rank() == 0:
        np.savez(FOLDER / "first", x, y, *weights())
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(12)
    state.fit(gsnr_tf.shard(data), EPOCHS, callbacks=[Log(state)], verbose=0)
    if gsnr_tf.rank() == 0:
        np.savez(FOLDER / "last", *weights())


rng = np.random.default_rng(0)
x = rng.normal(size=(12 * BATCHES, 4)).astype("float32")
y = x @ np.array([[1.0], [-2.0], [3.0], [0.5]], "float32")
# Ranks that come late begin with other weights, which must not count.
keras.utils.set_random_seed(1 if HOST == "127.1" else 0)
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
steps = 2 if SHARDING == "none" else None
# gamma=1 is Adam: what it learns does not depend on how many ranks there are. Keras adds
# epsilon before it corrects for the start, so both are compared without one.
optimizer = gsnr_tf.GSNRAdam(
    0.01, epsilon=1e-15, gamma=1, sharding=SHARDING, gradient_accumulation_steps=steps
)
model.compile(optimizer=optimizer, loss="mse")
train(gsnr_tf.ElasticState(model, commit_batches=2))
