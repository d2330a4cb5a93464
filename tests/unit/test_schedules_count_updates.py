"""Schedules are read by updates: against the cosine in plain Python."""

import math
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import gsnr_tf
from gsnr_tf import comm
from gsnr_tf.callbacks import BatchSizeRamp
from gsnr_tf.optimizers import learning_rate
from gsnr_tf.resilience import checkpoint
from gsnr_tf.schedules import WarmupCosine

K, PEAK, STEPS = 8, 0.25, 16
pytestmark = pytest.mark.filterwarnings("ignore:.*counts updates")


def cosine(update):
    return PEAK * (1 + math.cos(math.pi * min(update, STEPS) / STEPS)) / 2


def schedule():
    return keras.optimizers.schedules.CosineDecay(PEAK, STEPS)


def gsnr(**arguments):
    """At γ = 1 it is SGD: the weight walks minus the rate at each update."""
    return gsnr_tf.GSNRSGD(schedule(), gamma=1.0, gradient_accumulation_steps=K, **arguments)


def base():
    return gsnr_tf.DistributedOptimizer(
        keras.optimizers.SGD(schedule(), gradient_accumulation_steps=K)
    )


class Walk:
    """A weight that gets one gradient again and again."""

    def __init__(self, optimizer, at=0.0):
        self.optimizer, self.weight = optimizer, keras.Variable([at])
        optimizer.build([self.weight])
        self._call = tf.function(self._apply)

    def _apply(self, gradient):
        scale = getattr(self.optimizer, "dynamic_scale", 1.0)
        self.optimizer.apply_gradients([(gradient * scale, self.weight)])

    def step(self, calls, gradient=1.0):
        """How far the weight goes in so many calls."""
        before = float(self.weight.numpy()[0])
        for _ in range(calls):
            self._call(tf.constant([gradient]))
        return before - float(self.weight.numpy()[0])


SCALED = [gsnr, base, lambda: gsnr_tf.LossScaleOptimizer(gsnr(), initial_scale=4.0)]
SCALED.append(lambda: gsnr_tf.LossScaleOptimizer(base(), initial_scale=4.0))
IDS = ["gsnr", "keras", "gsnr, scaled", "keras, scaled"]


@pytest.mark.parametrize("make", SCALED, ids=IDS)
def test_a_cosine_counts_updates(make):
    """The issue's case: with 8 micro-batches an update it was 0 after 2 updates."""
    walk = Walk(make())
    for update in range(STEPS + 1):
        assert float(walk.optimizer.learning_rate) == pytest.approx(cosine(update), abs=1e-7)
        assert walk.step(K - 1) == 0
        # What one asks in the middle of a window is what the step will use.
        assert float(walk.optimizer.learning_rate) == pytest.approx(cosine(update), abs=1e-7)
        assert walk.step(1) == pytest.approx(cosine(update), abs=1e-6)


@pytest.mark.parametrize("make", SCALED, ids=IDS)
def test_skipped_updates_do_not_count(make):
    walk = Walk(make())
    walk.step(3 * K)
    assert walk.step(K, gradient=np.inf) == 0
    assert walk.step(K) == pytest.approx(cosine(3), abs=1e-6)


def test_adam_follows_too():
    """Adam on one gradient walks its rate, whatever the gradient."""
    optimizer = keras.optimizers.Adam(schedule(), gradient_accumulation_steps=K)
    walk = Walk(gsnr_tf.DistributedOptimizer(optimizer))
    walked = [walk.step(K, gradient=3.0) for _ in range(4)]
    np.testing.assert_allclose(walked, [cosine(t) for t in range(4)], atol=1e-5)


def test_without_accumulation_calls_are_updates():
    optimizer = keras.optimizers.SGD(schedule())
    walk = Walk(gsnr_tf.DistributedOptimizer(optimizer))
    plain = Walk(keras.optimizers.SGD(schedule()))
    for _ in range(4):
        assert walk.step(1) == plain.step(1)


def test_a_rate_that_is_a_number_is_keras_own():
    optimizer = gsnr_tf.DistributedOptimizer(
        keras.optimizers.SGD(0.5, gradient_accumulation_steps=2)
    )
    assert isinstance(optimizer.learning_rate, keras.Variable)
    optimizer.learning_rate = 0.25
    assert Walk(optimizer).step(2) == 0.25


def network(optimizer):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, dtype="float32")])
    model.compile(optimizer, loss="mse")
    return model


def data(number):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(number, 4)).astype("float32")
    return x, (x @ np.full((4, 1), 0.5)).astype("float32")


class Rates(keras.callbacks.Callback):
    """The rate of each update, asked before it."""

    def on_train_begin(self, logs=None):
        self.found = []

    def on_train_batch_begin(self, batch, logs=None):
        if self.model.optimizer.at_window_start:
            self.found.append(float(self.model.optimizer.learning_rate))


def test_fit_in_float16():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = network(gsnr())
    finally:
        keras.config.set_dtype_policy(policy)
    assert isinstance(model.optimizer, gsnr_tf.LossScaleOptimizer)
    rates = Rates()
    x, y = data(STEPS * K)
    model.fit(x, y, batch_size=1, shuffle=False, verbose=0, callbacks=[rates])
    # The first loss scale may be too large: those updates do not count.
    made = int(model.optimizer.iterations)
    found = sorted(set(rates.found), reverse=True)
    np.testing.assert_allclose(found, [cosine(t) for t in range(len(found))], rtol=1e-5)
    assert made >= len(found) - 1 > 2


def test_a_saved_model_goes_on_in_mid_schedule(tmp_path):
    x, y = data(6 * K)
    whole, part = network(base()), network(base())
    whole.fit(x, y, batch_size=1, shuffle=False, verbose=0)
    # 2½ updates, and the rest.
    cut = 5 * K // 2
    part.fit(x[:cut], y[:cut], batch_size=1, shuffle=False, verbose=0)
    part.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert float(again.optimizer.learning_rate) == pytest.approx(cosine(2))
    again.fit(x[cut:], y[cut:], batch_size=1, shuffle=False, verbose=0)
    for one, other in zip(whole.get_weights(), again.get_weights()):
        np.testing.assert_array_equal(one, other)


# ---- where the batch changes ------------------------------------------------------


def test_where_the_window_varies_updates_of_the_first_one_count():
    optimizer = gsnr()
    optimizer.vary_window()
    walk, examples = Walk(optimizer), 0
    for steps in (K, K, 2 * K, 2 * K, 3 * K, K // 2, K):
        optimizer.set_accumulation_steps(steps)
        assert int(optimizer.schedule_step) == examples // K
        assert walk.step(steps) == pytest.approx(cosine(examples // K), abs=1e-6)
        examples += steps
    # What the window holds does not count before it is full.
    walk.step(K - 1)
    assert int(optimizer.schedule_step) == examples // K


def test_a_factor_is_on_top_of_the_schedule():
    optimizer = gsnr()
    optimizer.vary_window()
    walk = Walk(optimizer)
    walk.step(K)
    optimizer.multiply_learning_rate(2.0)
    assert walk.step(K) == pytest.approx(2 * cosine(1), abs=1e-6)
    with pytest.raises(ValueError, match="vary_window"):
        Walk(gsnr()).optimizer.multiply_learning_rate(2.0)
    constant = gsnr_tf.GSNRSGD(0.5, gamma=1.0, gradient_accumulation_steps=K)
    constant.multiply_learning_rate(2.0)
    assert float(constant.learning_rate) == 1.0


class Ramped(Rates):
    """Also counts the batches of the dataset that each update had."""

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        self.sizes = []

    def on_train_batch_begin(self, batch, logs=None):
        super().on_train_batch_begin(batch, logs)
        if self.model.optimizer.at_window_start:
            self.sizes.append(int(self.model.optimizer.accumulation_steps))


@pytest.mark.filterwarnings("ignore:.*samples an update", "ignore:.*ran out of data")
def test_a_ramp_and_a_schedule(tmp_path):
    """The rate is the schedule's by examples ÷ first batch, times √2 for each doubling;
    a model that was saved goes on with both."""
    steps, number = 60, 2048
    decay = keras.optimizers.schedules.CosineDecay(0.05, steps)
    optimizer = gsnr_tf.GSNRSGD(decay, gamma=1.0, gradient_accumulation_steps=2)
    model = network(optimizer)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(number, 4)).astype("float32")
    y = rng.normal(size=(number, 1)).astype("float32")
    ramp = BatchSizeRamp(8, every=1)
    seen = Ramped()
    arrays = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    model.fit(arrays, shuffle=False, verbose=0, callbacks=[ramp, seen])
    assert [done["accumulation"] for done in ramp.history] == [4, 8]
    before = np.cumsum([0, *seen.sizes[:-1]]) // 2
    expected = [
        0.05 * (1 + math.cos(math.pi * min(t, steps) / steps)) / 2 * math.sqrt(size / 2)
        for t, size in zip(before, seen.sizes)
    ]
    np.testing.assert_allclose(seen.found, expected, rtol=1e-4, atol=1e-7)
    assert len(before) > 12 and ramp.history[-1]["learning_rate"] in seen.found

    store = {}
    optimizer.save_own_variables(store)
    again = gsnr_tf.GSNRSGD(decay, gamma=1.0, gradient_accumulation_steps=2)
    again.vary_window()
    again.build(network("sgd").trainable_variables)
    again.load_own_variables(store)
    assert float(again.learning_rate) == float(optimizer.learning_rate)
    assert int(again.schedule_step) == int(optimizer.schedule_step) > steps / 2
    assert optimizer.schedule_state() == again.schedule_state()


def test_a_checkpoint_keeps_where_the_schedule_is(tmp_path):
    """Also without the engine, as `SaveOnPreemption` makes one, for another division."""

    def make(window):
        optimizer = gsnr_tf.GSNRSGD(schedule(), gamma=1.0, gradient_accumulation_steps=window)
        optimizer.vary_window()
        model = network(optimizer)
        optimizer.build(model.trainable_variables)
        return model, optimizer

    communicator = comm.choose("auto", tf.distribute.get_strategy())
    model, optimizer = make(2)
    x, y = data(4)
    model.fit(x, y, batch_size=1, verbose=0)
    optimizer.set_accumulation_steps(4)
    optimizer.multiply_learning_rate(2.0)
    model.fit(x, y, batch_size=1, verbose=0)
    checkpoint.save(tmp_path, "here", model, communicator, {}, {})
    for window in (2, 8):
        again, resumed = make(window)
        checkpoint.load(tmp_path, None, again, communicator)
        assert int(resumed.iterations) == 3 and int(resumed.schedule_step) == 4
        assert float(resumed.learning_rate) == pytest.approx(2 * cosine(4))
        assert resumed.schedule_state() == optimizer.schedule_state()


def test_more_workers_count_for_more_examples():
    """As after an elastic job has grown: a micro-batch then has twice the examples."""
    optimizer = gsnr()
    optimizer.vary_window()
    walk = Walk(optimizer)
    optimizer.count_examples(2)
    walk.step(2 * K)
    assert int(optimizer.schedule_step) == 2
    optimizer.count_examples(4)
    walk.step(3 * K)
    assert int(optimizer.schedule_step) == 2 + 6
    assert optimizer.schedule_state()["examples"] == 8 * 2 * K


@pytest.mark.parametrize("varies", [False, True])
def test_replicas_of_a_strategy(varies):
    """Four of them: each update of 2 micro-batches on each counts once."""
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(4)])
    with strategy.scope():
        optimizer = gsnr_tf.GSNRSGD(schedule(), gamma=1.0, gradient_accumulation_steps=2)
        if varies:
            optimizer.vary_window()
        weight = keras.Variable([0.0])
        optimizer.build([weight])
    one = tf.constant([0.25])  # what a strategy divides by its replicas

    @tf.function
    def call():
        strategy.run(lambda: optimizer.apply_gradients([(one, weight)]))

    walked, examples = [], 0
    for steps in (2, 2, 4 if varies else 2, 2):
        if varies:
            optimizer.set_accumulation_steps(steps)
        before = float(weight.numpy()[0])
        for _ in range(steps):
            call()
        walked.append((before - float(weight.numpy()[0]), cosine(examples // 2)))
        examples += steps
    np.testing.assert_allclose(*zip(*walked), atol=1e-6)


# ---- the notice -------------------------------------------------------------------


def told(optimizer, calls=K):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Walk(optimizer).step(calls)
    return [str(w.message) for w in caught if "counts updates" in str(w.message)]


def test_it_is_told_once_what_counts(monkeypatch):
    monkeypatch.setattr(learning_rate, "_told", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gsnr().build([keras.Variable([0.0])])  # loading a model is no training
    assert told(gsnr_tf.GSNRSGD(WarmupCosine(0.1, 20), gradient_accumulation_steps=K)) == []
    assert told(gsnr_tf.GSNRSGD(0.1, gradient_accumulation_steps=K)) == []
    plain = keras.optimizers.SGD(schedule())
    assert told(gsnr_tf.DistributedOptimizer(plain)) == []
    (text,) = told(base())
    assert "CosineDecay counts updates in DistributedSGD" in text
    assert "one for the 8 micro-batches" in text and "divide them by 8" in text
    assert told(gsnr()) == []
