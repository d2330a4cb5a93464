"""`compile` and `fit` on several ranks."""

import numpy as np
import pytest

FAMILY = ["GSNRSGD", "GSNRAdam", "GSNRLars", "GSNRLamb", "keras"]


def fit(name, policy="float32", **arguments):
    """Weights after each epoch, from ranks that differ in seed and data."""
    import keras
    import numpy as np

    import gsnr_tf

    rank = gsnr_tf.rank()
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(rank)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    before = model.get_weights()[0]
    if name == "keras":
        optimizer = gsnr_tf.DistributedOptimizer(keras.optimizers.SGD(0.1))
    else:
        optimizer = getattr(gsnr_tf, name)(0.1, **arguments)
    model.compile(optimizer=optimizer, loss="mse")
    x = np.random.default_rng(rank).normal(size=(16, 4)).astype("float32")
    history = []
    for _epoch in range(2):
        model.fit(x, x[:, :1], batch_size=16, verbose=0)
        history.append(model.get_weights())
    keras.config.set_dtype_policy("float32")
    return before, history


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.smoke) if n == "GSNRLamb" else n for n in FAMILY],
)
def test_ranks_that_start_apart_are_equal_from_the_first_update_on(on_ranks, name):
    """Stock Horovod's wrapper lets them drift apart without an error."""
    (before, first), (other_before, other) = on_ranks(2, fit, name)
    assert np.abs(before - other_before).max() > 0.01
    for weights, others in zip(first, other):
        for weight, same in zip(weights, others):
            np.testing.assert_array_equal(weight, same)
    assert np.abs(first[1][0] - first[0][0]).max() > 0


def fit_with_an_overflow(name, policy, steps, by_hand):
    """State after each batch; the second window holds an inf on rank 1 alone."""
    import keras
    import numpy as np
    import tensorflow as tf

    import gsnr_tf

    rank = gsnr_tf.rank()
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(2), keras.layers.Dense(1, dtype="float32")]
    )
    optimizer = getattr(gsnr_tf, name)(0.1, gradient_accumulation_steps=steps)
    model.compile(optimizer=optimizer, loss="mse")
    states = []

    class Keep(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            wrapper = self.model.optimizer
            states.append(
                {
                    "weights": model.get_weights(),
                    "state": [v.numpy() for v in optimizer._variables[2:]],
                    "scale": float(getattr(wrapper, "dynamic_scale", 0.0)),
                    "updates": int(optimizer.iterations),
                    "skipped": int(optimizer.skipped_steps),
                }
            )

    batches = 4 * (steps or 1)
    x = np.random.default_rng(rank).normal(size=(batches, 4, 2)).astype("float32")
    if rank == 1:
        x[steps or 1, 0, 0] = np.inf
    data = tf.data.Dataset.from_tensor_slices((x, x[:, :, :1]))
    if by_hand:
        apply_by_hand(model, data, Keep)
    else:
        model.fit(data, verbose=0, callbacks=[Keep()])
    keras.config.set_dtype_policy("float32")
    return states, type(model.optimizer).__module__


def apply_by_hand(model, data, callback):
    import tensorflow as tf

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x) - y))
            loss = model.optimizer.scale_loss(loss)
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_variables))

    keep = callback()
    keep.set_model(model)
    for batch, (x, y) in enumerate(data):
        step(x, y)
        keep.on_train_batch_end(batch)


def flat(state):
    parts = [state["scale"], state["updates"], state["skipped"]]
    parts += [*state["weights"], *state["state"]]
    return np.concatenate([np.ravel(part).astype("float64") for part in parts])


@pytest.mark.parametrize("by_hand", [False, True], ids=["fit", "loop"])
@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_an_overflow_on_one_rank_is_skipped_by_all(on_ranks, policy, steps, by_hand):
    """Decided on local gradients, it hangs the job or splits the ranks."""
    results = on_ranks(2, fit_with_an_overflow, "GSNRLamb", policy, steps, by_hand)
    (first, module), (second, _) = results
    if policy == "mixed_float16":
        assert module == "gsnr_tf.optimizers.loss_scale"
    calls = steps or 1
    assert [s["updates"] for s in first][calls - 1 :: calls] == [1, 1, 2, 3]
    assert first[-1]["skipped"] == 1
    for mine, other in zip(first[calls - 1 :: calls], second[calls - 1 :: calls]):
        assert flat(mine).tobytes() == flat(other).tobytes()
    before, after, later = first[calls - 1], first[2 * calls - 1], first[3 * calls - 1]
    for weight, same in zip(before["weights"], after["weights"]):
        np.testing.assert_array_equal(weight, same)
    assert np.isfinite(np.concatenate([np.ravel(w) for w in later["weights"]])).all()
    assert (before["weights"][0] != later["weights"][0]).any()
    if policy == "mixed_float16":
        assert after["scale"] == before["scale"] / 2 == later["scale"]


def compiled_by_xla(with_callback):
    import keras
    import numpy as np

    import gsnr_tf

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(optimizer=gsnr_tf.GSNRSGD(0.1), loss="mse", jit_compile=True)
    callbacks = []
    if with_callback:
        callbacks.append(gsnr_tf.callbacks.BroadcastGlobalVariablesCallback())
    x = np.ones((8, 4), "float32")
    try:
        model.fit(x, x[:, :1], batch_size=4, verbose=0, callbacks=callbacks)
    except RuntimeError as error:
        return str(error)
    return model.jit_compile


def test_xla_is_refused_with_advice_and_switched_off_by_the_callback(on_ranks):
    for message in on_ranks(2, compiled_by_xla, False):
        assert "jit_compile=False" in message
        assert "BroadcastGlobalVariablesCallback" in message
    assert on_ranks(2, compiled_by_xla, True) == [False, False]


def initialised_by_us():
    import sys

    import keras
    import tensorflow as tf

    import gsnr_tf

    loaded = "horovod.tensorflow" in sys.modules
    optimizer = gsnr_tf.GSNRSGD(0.1, communicator="horovod")
    optimizer.build([keras.Variable(tf.ones([2]))])
    optimizer.connect()
    return loaded, optimizer.samples


def test_horovod_is_initialised_where_nobody_has(on_new_ranks):
    assert on_new_ranks(2, initialised_by_us) == [(False, 2)] * 2
