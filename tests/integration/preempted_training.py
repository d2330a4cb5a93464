"""Trains for test_preemption.py; at batch 3 of epoch 1 of the first start all ranks wait
for SIGTERM, or rank 0 alone gets it; in starts after that they train to the end."""

import json
import os
import signal
import sys
import time

import keras
import numpy as np

import gsnr_tf

folder, how = sys.argv[1:]
X = np.random.default_rng(0).normal(size=(96, 4)).astype("float32")


class Wait(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        print("epoch", epoch, flush=True)

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == (1, 3) and not os.path.exists(folder):
            if how == "rank 0 alone":
                if gsnr_tf.rank() == 0:
                    os.kill(os.getpid(), signal.SIGTERM)
                return
            print("asleep", flush=True)
            while not save._notice.received:
                time.sleep(0.05)


keras.utils.set_random_seed(1)
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile(optimizer=gsnr_tf.GSNRAdam(0.01), loss="mse")
save = gsnr_tf.callbacks.SaveOnPreemption(folder)
model.fit(
    X, X[:, :1], batch_size=8, epochs=3, shuffle=False, verbose=0,
    callbacks=[Wait(), save],
)  # fmt: skip
weights = [value.tolist() for value in model.get_weights()]
updates = int(model.optimizer.iterations)
print("ended", json.dumps({"weights": weights, "updates": updates}), flush=True)
