"""Updates that are skipped: how many, with what left behind, and when it is enough."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import gsnr_tf
from gsnr_tf.callbacks import BroadcastGlobalVariablesCallback, SkippedUpdates

ROWS, BATCH = 96, 8


def make_model(optimizer, **options):
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Dense(3, name="hidden"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.Dense(1, name="out"),
    ]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile(optimizer=optimizer, loss="mse", **options)
    return model


def data(bad_batches=()):
    x = np.random.default_rng(0).normal(size=(ROWS, 4)).astype("float32")
    y = x[:, :1].copy()
    for batch in bad_batches:
        x[batch * BATCH] = np.nan
    return x, y


def fit(model, bad_batches, **options):
    x, y = data(bad_batches)
    return model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, **options)


def test_an_end_after_so_many_in_a_row_that_names_the_variable():
    # Two batches an update: from the second update on all are spoiled.
    model = make_model(gsnr_tf.GSNRAdam(0.01, gradient_accumulation_steps=2,
                                        max_consecutive_skips=3))  # fmt: skip
    with pytest.raises(tf.errors.InvalidArgumentError) as raised:
        fit(model, range(2, 12))
    message = str(raised.value)
    assert "3 updates in a row were skipped" in message
    assert "hidden/kernel is not finite on rank 0" in message
    assert "update 4, after 8 batches" in message


def test_skips_that_are_not_in_a_row_do_not_end_it():
    optimizer = gsnr_tf.GSNRAdam(0.01, gradient_accumulation_steps=2, max_consecutive_skips=2)
    fit(make_model(optimizer), [0, 4, 8])
    assert int(optimizer.skipped_steps) == 3 and int(optimizer.consecutive_skips) == 0


def test_no_limit():
    optimizer = gsnr_tf.GSNRAdam(0.01, gradient_accumulation_steps=2, max_consecutive_skips=None)
    fit(make_model(optimizer), range(12), epochs=4)
    assert int(optimizer.consecutive_skips) == 24


def test_the_limit_is_saved_and_checked(tmp_path):
    optimizer = gsnr_tf.GSNRAdam(0.01, gradient_accumulation_steps=2, max_consecutive_skips=4)
    model = make_model(optimizer)
    model.save(tmp_path / "m.keras")
    assert keras.models.load_model(tmp_path / "m.keras").optimizer.max_consecutive_skips == 4
    with pytest.raises(ValueError, match="Received: max_consecutive_skips=0"):
        gsnr_tf.GSNRAdam(0.01, max_consecutive_skips=0)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_optimizers_of_keras_end_too(jit_compile):
    optimizer = gsnr_tf.DistributedOptimizer(keras.optimizers.Adam(0.01))
    optimizer.max_consecutive_skips = 3
    model = make_model(optimizer, jit_compile=jit_compile)
    with pytest.raises(tf.errors.InvalidArgumentError, match="3 updates in a row"):
        fit(model, range(12))


def test_replicas_end_together():
    strategy = tf.distribute.MirroredStrategy(tf.config.list_logical_devices("CPU")[:2])
    with strategy.scope():
        optimizer = gsnr_tf.GSNRAdam(0.01, max_consecutive_skips=3)
        model = make_model(optimizer)
    with pytest.raises(tf.errors.InvalidArgumentError, match="hidden/kernel.*on rank"):
        fit(model, range(12))


def test_a_loss_scale_may_fall_before_it_counts():
    optimizer = gsnr_tf.GSNRAdam(0.01, gradient_accumulation_steps=2, max_consecutive_skips=3)
    scaled = gsnr_tf.LossScaleOptimizer(optimizer, initial_scale=8.0)
    model = make_model(scaled)
    with pytest.raises(tf.errors.InvalidArgumentError, match="3 updates in a row"):
        fit(model, range(12), epochs=2)
    # 8 → 4 → 2 → 1, then three more, of which the last is not made.
    assert int(optimizer.skipped_steps) == 5


@pytest.mark.parametrize("callback", [SkippedUpdates, BroadcastGlobalVariablesCallback])
@pytest.mark.parametrize("steps", [2, 3])
def test_a_skipped_update_leaves_statistics_as_they_were(callback, steps):
    """As if its batches had not been there."""

    def trained(bad):
        optimizer = gsnr_tf.GSNRSGD(0.01, gradient_accumulation_steps=steps, gamma=1.0)
        model = make_model(optimizer)
        x, y = data(bad)
        if not bad:  # Without the window of batch 7.
            window = 7 // steps
            keep = np.r_[0 : window * steps * BATCH, (window + 1) * steps * BATCH : ROWS]
            x, y = x[keep], y[keep]
        history = model.fit(
            x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[callback()]
        )
        return model.get_weights(), history.history

    found, history = trained([7])
    expected, _ = trained([])
    for one, other in zip(found, expected):
        np.testing.assert_array_equal(one, other)
    assert history["consecutive_skips"] == [0]


def test_nothing_is_logged_where_nothing_is_skipped():
    optimizer = gsnr_tf.GSNRAdam(0.01, gradient_accumulation_steps=2)
    history = fit(make_model(optimizer), [], callbacks=[SkippedUpdates()])
    assert "consecutive_skips" not in history.history


def test_complex_variables_are_refused():
    weight = tf.Variable(tf.constant([1 + 2j], tf.complex64), name="phase")
    with pytest.raises(ValueError, match="phase.*complex64"):
        gsnr_tf.GSNRSGD(0.1, gradient_accumulation_steps=2).build([weight])
    with pytest.raises(ValueError, match="phase.*complex64"):
        gsnr_tf.DistributedOptimizer(keras.optimizers.SGD(0.1)).build([weight])
