"""A task that trains in milliseconds: a plane with noise, by one dense layer."""

import os
import time

import keras
import numpy as np

from gsnr_tf.compare import Data, Split, Task


class Plane(Task):
    metric, loss, epochs, target = "squared error", "mse", 4, 0.5
    learning_rates = {"adam": 0.1}
    regularizer, regularizers, regularizer_limit = "weight_decay", (0.0, 0.01), 0.01

    def load(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(960, 8)).astype("float32")
        y = x @ np.linspace(-1, 1, 8) + rng.normal(scale=0.3, size=960)
        columns = x, y.astype("float32")[:, None]
        return Data(*(Split(*(c[rows] for c in columns)) for rows in PARTS))

    def build_model(self):
        return keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)])

    def score(self, model, features, targets):
        # A study that is to be killed must not be over before.
        time.sleep(float(os.environ.get("PLANE_SECONDS", "0")))
        return super().score(model, features, targets)

    def row_scores(self, model, features, targets):
        return np.square(model.predict(features, verbose=0) - targets)[:, 0]


PARTS = slice(0, 640), slice(640, 800), slice(800, 960)
