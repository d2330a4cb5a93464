"""A training under a strategy whose every part must be right, and what it comes to."""

import keras
import numpy as np
import tensorflow as tf

import gsnr_tf

# The last batch of an epoch has 11 rows: 6 and 5 of them for two replicas.
BATCH, ROWS, EPOCHS = 16, 107, 2


def data():
    """Features, targets and sample weights."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 4)).astype("float32")
    return x, x.sum(1, keepdims=True) ** 2, rng.uniform(0.2, 2, ROWS).astype("float32")


def batches():
    return tf.data.Dataset.from_tensor_slices(data()).batch(BATCH)


def slices():
    """The same, cut into what two replicas have: for one process that accumulates."""
    parts = []
    for start in range(0, ROWS, BATCH):
        rows = min(BATCH, ROWS - start)
        parts += [slice(start, start + rows // 2), slice(start + rows // 2, start + rows)]
    halves = [[array[part] for array in data()] for part in parts]
    spec = batches().element_spec
    return tf.data.Dataset.from_generator(lambda: map(tuple, halves), output_signature=spec)


def model(optimizer):
    """Compiled; with a regularizer, and metrics with weights and without."""
    keras.utils.set_random_seed(0)
    decayed = keras.layers.Dense(3, "tanh", kernel_regularizer=keras.regularizers.L2(0.05))
    made = keras.Sequential([keras.Input((4,)), decayed, keras.layers.Dense(1)])
    made.compile(optimizer, "mse", metrics=["mae"], weighted_metrics=[mean_error()])
    return made


def mean_error():
    return keras.metrics.MeanSquaredError(name="error")


def plain_optimizer():
    """Half the loss is half the step to it, as it is not to Adam."""
    return keras.optimizers.SGD(0.02, momentum=0.9)


def mean_optimizer():
    """The same, of the mean of all replicas."""
    return gsnr_tf.DistributedOptimizer(plain_optimizer())


def gsnr_optimizer(steps):
    arguments = {"estimator": "robust", "gradient_accumulation_steps": steps}
    return gsnr_tf.GSNRSGD(0.02, momentum=0.9, **arguments)


def result(trained, history):
    """What must be alike: weights, and what was told of each epoch."""
    weights = np.concatenate([np.ravel(weight) for weight in trained.get_weights()])
    return {"weights": weights.tolist(), **history.history}
