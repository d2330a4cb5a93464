"""A window that changes under way, and the callback that changes it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import gsnr_tf
from gsnr_tf.callbacks import BatchSizeRamp, GSNRMonitor
from gsnr_tf.monitor.run import Run
from gsnr_tf.stats import noise_scale
from tests.problems import OPTIMIZERS, PROBLEMS, feed, values

PROBLEM = PROBLEMS["model"]


def varied(name, windows):
    """Weights and state after updates with these windows, from one optimizer."""
    optimizer = OPTIMIZERS[name].make(gradient_accumulation_steps=2)
    optimizer.vary_window()
    variables = PROBLEM.variables()
    optimizer.build(variables)
    step = tf.function(lambda *g: optimizer.apply_gradients(zip(g, variables)))
    for steps, samples in zip(windows, PROBLEM.samples):
        optimizer.set_accumulation_steps(steps)
        for sample in samples[:steps]:
            step(*[tf.constant(g) for g in sample])
    assert step.experimental_get_tracing_count() == 1
    return values(variables), optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_window_that_changes_equals_fixed_ones(name):
    """Each update is that of an optimizer built for its window, from the same state."""
    windows = (2, 4, 3)
    found, optimizer = varied(name, windows)
    variables, state = PROBLEM.variables(), None
    for number, (steps, samples) in enumerate(zip(windows, PROBLEM.samples), start=1):
        fixed = OPTIMIZERS[name].make(gradient_accumulation_steps=steps)
        fixed.build(variables)
        if state is not None:
            for variable, value in zip(fixed.variables, state, strict=True):
                variable.assign(value)
            fixed._iterations.assign((number - 1) * steps)
        feed(fixed, variables, samples[:steps])
        state = values(fixed.variables)
        assert int(fixed.iterations) == number
    for one, other in zip(found, values(variables), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-7)
    assert int(optimizer.iterations) == 3
    assert int(optimizer.samples) == 3


def test_the_window_is_saved(tmp_path):
    _, optimizer = varied("adam", (2, 4))
    store = {}
    optimizer.save_own_variables(store)
    loaded = OPTIMIZERS["adam"].make(gradient_accumulation_steps=2)
    loaded.vary_window()
    loaded.build(PROBLEM.variables())
    loaded.load_own_variables(store)
    assert int(loaded.accumulation_steps) == 4 and int(loaded.iterations) == 2


def test_a_skipped_window_does_not_count():
    optimizer = gsnr_tf.GSNRAdam(0.1, gradient_accumulation_steps=2)
    optimizer.vary_window()
    variable = keras.Variable(np.ones(2), dtype="float32")
    optimizer.build([variable])
    optimizer.set_accumulation_steps(3)
    for value in (1.0, np.inf, 2.0, 1.0, 3.0, 2.0):
        optimizer.apply_gradients([(tf.fill([2], value), variable)])
    assert int(optimizer.iterations) == 1 and int(optimizer.skipped_steps) == 1


def test_windows_change_between_updates_and_by_consent():
    optimizer = gsnr_tf.GSNRAdam(0.1, gradient_accumulation_steps=3)
    variable = keras.Variable(np.ones(2), dtype="float32")
    with pytest.raises(ValueError, match="Call `vary_window"):
        optimizer.set_accumulation_steps(4)
    optimizer.vary_window()
    optimizer.build([variable])
    optimizer.apply_gradients([(tf.ones([2]), variable)])
    with pytest.raises(ValueError, match="1 of 3 micro-batches"):
        optimizer.set_accumulation_steps(4)
    fixed = gsnr_tf.GSNRAdam(0.1, gradient_accumulation_steps=3)
    fixed.build([variable])
    with pytest.raises(ValueError, match="already built"):
        fixed.vary_window()


def regression(noise, batch=8, number=4096):
    """A dataset whose gradient has little noise at first and much at the end."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(number, 4)).astype("float32")
    y = x @ np.full((4, 1), 3.0, "float32") + noise * rng.normal(size=(number, 1))
    return tf.data.Dataset.from_tensor_slices((x, y.astype("float32"))).batch(batch)


def trained(ramp, noise, rate=0.05, epochs=1, callbacks=()):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(gsnr_tf.GSNRSGD(rate, gradient_accumulation_steps=2), loss="mse")
    data = ramp.batches(regression(noise))
    callbacks = [ramp, *callbacks]
    model.fit(data, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)
    return model


def test_the_batch_grows_with_the_noise(tmp_path):
    ramp = BatchSizeRamp(8, scaling="sqrt", max_joined=4, every=1)
    # How many batches wait to be joined, and are too small, is a matter of time.
    watching = [GSNRMonitor(tmp_path, every=1)]
    model = trained(ramp, noise=1.0, epochs=2, callbacks=watching)
    sizes = [(done["accumulation"], done["joined"]) for done in ramp.history]
    assert sizes == [(4, 1), (8, 1), (8, 2), (8, 4)]
    rates = [done["learning_rate"] for done in ramp.history]
    np.testing.assert_allclose(rates, 0.05 * 2 ** (np.arange(1, 5) / 2), rtol=1e-5)
    assert float(model.optimizer.learning_rate) == pytest.approx(rates[-1])
    _, batches = Run(tmp_path).series("batch/examples")
    assert sorted(set(batches[:-1])) == [16, 32, 64, 128, 256]
    assert (np.diff(batches[:-1]) >= 0).all()
    # Every example was seen once, whatever the size of its batch.
    assert Run(tmp_path).series("progress/updates")[0][-1] <= 2 * 4096


def test_without_noise_the_batch_stays(tmp_path):
    ramp = BatchSizeRamp(64, every=1)
    trained(ramp, noise=0.0, rate=1e-4)
    assert ramp.history == []


def test_doubling_waits_for_the_noise_scale(tmp_path):
    """Whenever the batch was doubled, twice the batch was at most the noise scale."""
    ramp = BatchSizeRamp(32, share=0.5, every=1)
    trained(ramp, noise=1.0, callbacks=[GSNRMonitor(tmp_path, every=1)])
    run = Run(tmp_path)
    _, updates = run.series("progress/updates")
    _, traces = run.series("noise/trace")
    _, signals = run.series("noise/signal")
    _, batches = run.series("batch/examples")
    assert ramp.history
    trace, signal = noise_scale.Smoothed(0.8), noise_scale.Smoothed(0.8)
    scales = {
        update: noise_scale.noise_scale(trace.add(t), signal.add(s))
        for update, t, s in zip(updates, traces, signals)
    }
    sizes = dict(zip(updates, batches))
    for done in ramp.history:
        update = done["update"]
        assert 2 * sizes[update] <= 0.5 * scales[update] * 1.001


@pytest.mark.parametrize("scaling", ["linear", "adascale"])
def test_learning_rates_follow(scaling):
    ramp = BatchSizeRamp(4, scaling=scaling, every=1)
    trained(ramp, noise=1.0)
    (done,) = ramp.history
    factor = done["learning_rate"] / 0.05
    if scaling == "linear":
        assert factor == pytest.approx(2)
    else:  # at twice the batch or more from the noise scale
        assert 1.3 < factor < 2


def test_joined_batches_grow_while_they_are_read():
    ramp, sizes = BatchSizeRamp(2, max_joined=4), []
    for batch in ramp.batches(tf.data.Dataset.range(40).batch(2)):
        sizes.append(len(batch))
        ramp._joined.assign(1 if len(sizes) < 3 else 4)
    assert sum(sizes) == 40 and sizes[:3] == [2, 2, 2] and 8 in sizes


def test_joined_batches_hold_the_same_examples():
    ramp = BatchSizeRamp(2, max_joined=4)
    data = tf.data.Dataset.range(10).batch(2)
    ramp._joined.assign(4)
    joined = [batch.numpy().tolist() for batch in ramp.batches(data)]
    assert joined == [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9]]


def test_what_cannot_ramp_is_refused():
    with pytest.raises(ValueError, match="Received: 'cubic'"):
        BatchSizeRamp(8, scaling="cubic")
    with pytest.raises(ValueError, match="Received: max_accumulation=0"):
        BatchSizeRamp(0)
    with pytest.raises(ValueError, match="Received: share=0"):
        BatchSizeRamp(8, share=0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("adam", loss="mse")
    with pytest.raises(TypeError, match="Received: Adam"):
        model.fit(regression(1.0), verbose=0, callbacks=[BatchSizeRamp(8)])
