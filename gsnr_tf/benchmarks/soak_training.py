"""What the ranks of a soak train: something small, under the engine or under elastic.

    python -m gsnr_tf.benchmarks.soak_training FOLDER engine|elastic SHARDING

Every rank notes each update in FOLDER/log-PID, a line of JSON with all weights. Files in
FOLDER say what is asked of it: `finish`, the number of the last update; `pace`, seconds
to sleep after each; `undisturbed`, to save nothing; `raise-PID`, to fail; `drop-PID`, to
lose all connections; `full`, that no file may grow, where there is no small disk to fill.
"""

import base64
import contextlib
import json
import os
import resource
import signal
import socket
import stat
import sys
import threading
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from gsnr_tf.comm import rank, size
from gsnr_tf.data import shard
from gsnr_tf.engine import initialize
from gsnr_tf.optimizers import GSNRSGD
from gsnr_tf.resilience import ElasticState, elastic_run

ROWS, COLUMNS, BATCH = 240, 6, 24
# Updates from one checkpoint or commit to the next.
SAVE = 5
_DROP_SECONDS = 1.0


class AskedToFail(Exception):
    """The fault of a rank that raises."""


class Finished(Exception):
    """Ends a `fit` at an update that all ranks know."""


class Orders:
    """What the files in a folder ask of this process, and what it notes there."""

    def __init__(self, folder):
        self._folder = Path(folder)
        self._log = (self._folder / f"log-{os.getpid()}").open("a")
        self.pace = float(self._read("pace", 0.0))
        self.saves = not self._has("undisturbed")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        threading.Thread(target=self._drop_when_asked, daemon=True).start()

    def begins(self):
        self._note(event="begins")

    def after_update(self, update, model):
        """Notes an update; whether it was the last."""
        weights = np.concatenate([v.numpy().ravel() for v in model.trainable_variables])
        text = base64.b64encode(weights.astype("float32").tobytes()).decode()
        self._note(event="update", update=update, weights=text)
        if self._has(f"raise-{os.getpid()}"):
            raise AskedToFail(f"asked to fail after update {update}")
        limit = 4096 if self._has("full") else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        time.sleep(self.pace)
        return update >= int(self._read("finish", sys.maxsize))

    def _note(self, **what):
        line = {"time": time.time(), "rank": rank(), "size": size(), **what}
        # The log grows where other files may not.
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        print(json.dumps(line), file=self._log, flush=True)

    def _has(self, name):
        return (self._folder / name).exists()

    def _read(self, name, default):
        try:
            return (self._folder / name).read_text()
        except FileNotFoundError:
            return default

    def _drop_when_asked(self):
        order = self._folder / f"drop-{os.getpid()}"
        while True:
            if order.exists():
                order.unlink()
                until = time.monotonic() + _DROP_SECONDS
                while time.monotonic() < until:
                    drop_connections()
                    time.sleep(0.005)
            time.sleep(0.05)


def drop_connections():
    """Shuts every TCP connection of this process, as when the network drops them."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.stat(int(name)).st_mode):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                if connection.family == socket.AF_INET:
                    connection.getpeername()
                    connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # closed meanwhile, or not connected


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, COLUMNS)).astype("float32")
    return x, np.tanh(x @ rng.normal(size=(COLUMNS, 1)).astype("float32"))


def make_model(dropout):
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(1)]
    if dropout:
        layers.insert(1, keras.layers.Dropout(0.2))
    return keras.Sequential([keras.Input((COLUMNS,)), *layers])


def train_engine(folder, sharding, orders):
    config = {
        "train_batch_size": BATCH,
        "train_micro_batch_size_per_gpu": BATCH // 4,
        "optimizer": {"type": "GSNRAdam", "params": {"lr": 1e-3}},
        "zero_optimization": {"stage": 1 if sharding == "slices" else 0},
        "steps_per_print": 10**9,
    }
    saved = Path(folder, "disk", "saved")
    engine = initialize(
        make_model(dropout=True),
        config,
        loss="mse",
        training_data=data(),
        preemption_dir=saved,
    )
    orders.begins()
    over = False
    while not over:
        engine.train_batch()
        over = orders.after_update(engine.global_steps, engine.model)
        if orders.saves and engine.global_steps % SAVE == 0:
            engine.save_checkpoint(saved)


def train_elastic(folder, sharding, orders):
    model = make_model(dropout=False)
    # With gamma=1 an update is a mean, whatever the number of ranks; two micro-batches,
    # so that one rank has samples enough.
    optimizer = GSNRSGD(1e-2, gamma=1, gradient_accumulation_steps=2, sharding=sharding)
    model.compile(optimizer=optimizer, loss="mse")
    dataset = tf.data.Dataset.from_tensor_slices(data()).batch(BATCH // 2)

    class AfterUpdate(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            optimizer = self.model.optimizer
            if not optimizer.at_window_start:
                return
            if orders.after_update(int(optimizer.iterations), self.model):
                raise Finished

    @elastic_run
    def train(state):
        orders.begins()
        state.fit(shard(dataset), 10**6, callbacks=[AfterUpdate()], verbose=0)

    saved = Path(folder, "disk", "saved") if orders.saves else None
    state = ElasticState(model, commit_batches=2 * SAVE, folder=saved)
    with contextlib.suppress(Finished):
        train(state)


if __name__ == "__main__":
    _, folder, family, sharding = sys.argv
    train = {"engine": train_engine, "elastic": train_elastic}[family]
    train(folder, sharding, Orders(folder))
