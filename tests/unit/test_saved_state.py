"""What is saved of an optimizer, and how another one goes on from it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import gsnr_tf


def make_model(steps, **arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    optimizer = gsnr_tf.GSNRAdam(0.01, gradient_accumulation_steps=steps, **arguments)
    model.compile(optimizer=optimizer, loss="mse")
    return model


def fit(model, batches):
    x = np.random.default_rng(0).normal(size=(8 * batches, 4)).astype("float32")
    model.fit(x, x[:, :1], batch_size=8, verbose=0, shuffle=False)


def saved(optimizer):
    store = {}
    optimizer.save_own_variables(store)
    return store


@pytest.mark.parametrize("batches, updates", [(8, 2), (11, 2)])
def test_another_accumulation_begins_a_whole_window(batches, updates, tmp_path):
    model = make_model(4)
    fit(model, batches)
    other = make_model(2)
    other.optimizer.build(other.trainable_variables)
    other.optimizer.load_own_variables(saved(model.optimizer))
    assert int(other.optimizer.iterations) == updates
    assert other.optimizer.at_window_start
    assert float(other.optimizer.window_state()[0].numpy()) == 0
    fit(other, 2)
    assert int(other.optimizer.iterations) == updates + 1


def test_a_window_goes_on_where_nothing_has_changed():
    model = make_model(4)
    fit(model, 11)
    other = make_model(4)
    other.optimizer.build(other.trainable_variables)
    other.optimizer.load_own_variables(saved(model.optimizer))
    assert not other.optimizer.at_window_start
    for one, same in zip(other.optimizer.window_state(), model.optimizer.window_state()):
        np.testing.assert_array_equal(one.numpy(), same.numpy())
    other.optimizer.reset_window()
    assert other.optimizer.at_window_start and int(other.optimizer.iterations) == 2


def test_what_version_0_1_saved_is_loaded():
    model = make_model(4)
    fit(model, 8)
    optimizer = model.optimizer
    # It numbered all variables, the window's weight among them, then its vectors.
    values = [v.numpy() for v in [*optimizer.variables, *optimizer._accumulated]]
    other = make_model(4)
    other.optimizer.build(other.trainable_variables)
    other.optimizer.load_own_variables({str(i): v for i, v in enumerate(values)})
    for one, same in zip(other.optimizer.full_state(), optimizer.full_state(), strict=True):
        np.testing.assert_array_equal(one.numpy(), same.numpy())


def test_an_optimizer_with_one_sample_loads_and_evaluates(tmp_path):
    model = make_model(2)
    fit(model, 2)
    config = model.optimizer.get_config()
    store = saved(model.optimizer)
    # As it would be on ranks, each of them a sample.
    alone = gsnr_tf.GSNRAdam.from_config({**config, "gradient_accumulation_steps": None})
    model.compile(optimizer=alone, loss="mse")
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    loaded.evaluate(np.ones((2, 4)), np.ones((2, 1)), verbose=0)
    loaded.optimizer.load_own_variables(store)
    with pytest.raises(ValueError, match="one sample has no spread"):
        fit(loaded, 1)


def test_saved_models_and_exports_work(tmp_path):
    model = make_model(2)
    fit(model, 3)  # in the middle of a window
    x = tf.ones((2, 4))
    expected = model(x)
    tf.saved_model.save(model, str(tmp_path / "saved"))
    served = tf.saved_model.load(str(tmp_path / "saved"))
    (found,) = served.signatures["serving_default"](x).values()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    model.export(str(tmp_path / "export"), verbose=False)
    exported = tf.saved_model.load(str(tmp_path / "export"))
    np.testing.assert_allclose(exported.serve(x), expected, rtol=1e-6)


def test_rows_without_a_dense_shape():
    tables = [tf.Variable(tf.ones((5, 2))) for _ in range(2)]
    optimizers = [gsnr_tf.GSNRSGD(0.1, gamma=1.0, gradient_accumulation_steps=2),
                  keras.optimizers.SGD(0.1)]  # fmt: skip
    rows = tf.IndexedSlices(tf.ones((3, 2)), tf.constant([1, 3, 1]))
    for _ in range(2):
        optimizers[0].apply_gradients([(rows, tables[0])])
    optimizers[1].apply_gradients([(rows, tables[1])])
    np.testing.assert_allclose(*tables, rtol=1e-6)
