"""A program for test_examples.py: rank 1 of 2 dies after three batches of an epoch."""

import os

import keras
import numpy as np

import gsnr_tf


class Die(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 2 and gsnr_tf.rank() == 1:
            print("rank 1 dies", flush=True)
            os._exit(3)

    def on_epoch_end(self, epoch, logs=None):
        print("an epoch ended", flush=True)


model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile(optimizer=gsnr_tf.GSNRSGD(0.01), loss="mse")
x = np.ones((80, 4), "float32")
start = gsnr_tf.callbacks.BroadcastGlobalVariablesCallback()
model.fit(x, x[:, :1], batch_size=8, verbose=0, callbacks=[start, Die()])
