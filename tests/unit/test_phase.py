"""What the stack of a thread says about what it does, asked for in the midst of it."""

import gc
import sys
import threading

import keras
import numpy as np
import pytest

import gsnr_tf
from gsnr_tf.comm import phase


class Asked(keras.layers.Dense):
    """A layer that notes what the main thread does when the layer is called or saved."""

    def __init__(self, **kwargs):
        super().__init__(1, **kwargs)
        self.seen = {}

    def note(self, name):
        found = phase.of_main_thread()
        self.seen.setdefault(name, set()).add((found.kind, found.in_fit))

    def call(self, inputs):
        self.note("call")
        return super().call(inputs)

    def save_own_variables(self, store):
        self.note("save")
        super().save_own_variables(store)

    def load_own_variables(self, store):
        self.note("load")
        super().load_own_variables(store)


class Asking(keras.callbacks.Callback):
    def __init__(self, layer):
        super().__init__()
        self._layer = layer

    def on_train_batch_end(self, batch, logs=None):
        self._layer.note("train batch ended")

    def on_test_batch_end(self, batch, logs=None):
        self._layer.note("test batch ended")

    def on_epoch_end(self, epoch, logs=None):
        found = self._layer.seen.pop("call")
        self._layer.seen["call in fit"] = found


OURS = {"gradient_accumulation_steps": 2, "sharding": "none"}


@pytest.mark.parametrize(
    "optimizer, trains",
    [
        (lambda: gsnr_tf.GSNRSGD(0.1, **OURS), "trains"),
        (lambda: gsnr_tf.LossScaleOptimizer(gsnr_tf.GSNRSGD(0.1, **OURS)), "trains"),
        (lambda: keras.optimizers.SGD(0.1), "trains alone"),
        (lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), "trains alone"),
    ],
)
def test_who_trains_with_others(optimizer, trains):
    layer = Asked()
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile(optimizer=optimizer(), loss="mse", run_eagerly=True)
    x = np.ones((4, 3), "float32")
    layer.seen.clear()
    model.fit(x, x[:, :1], verbose=0)
    assert layer.seen["call"] == {(trains, True)}


def test_a_call_is_the_same_object_until_it_returns():
    first = phase.of_frame(sys._getframe())
    assert first.call is None  # since nothing is trained
    seen = []

    class Asks(keras.layers.Dense):
        def call(self, inputs):
            seen.extend([phase.of_main_thread().call, phase.of_main_thread().call])
            return super().call(inputs)

    model = keras.Sequential([keras.Input((3,)), Asks(1)])
    model.compile(optimizer=gsnr_tf.GSNRSGD(0.1, **OURS), loss="mse", run_eagerly=True)
    x = np.ones((4, 3), "float32")
    seen.clear()
    model.fit(x, x[:, :1], batch_size=2, verbose=0)
    depths = [id(call.f_back.f_back) for call in seen]
    assert depths[0] == depths[1] and depths[2] == depths[3] and depths[0] != depths[2]


def test_keras_on_the_stack(tmp_path):
    layer = Asked()
    model = keras.Sequential([keras.Input((3,)), layer])
    x = np.ones((4, 3), "float32")
    layer.seen.clear()
    ours = gsnr_tf.GSNRSGD(0.1, **OURS)
    model.compile(optimizer=ours, loss="mse", run_eagerly=True)
    asking = [Asking(layer)]
    model.fit(x, x[:, :1], validation_data=(x, x[:, :1]), verbose=0, callbacks=asking)
    assert ("trains", True) in layer.seen["call in fit"]
    assert ("evaluates", True) in layer.seen["call in fit"]
    assert layer.seen["train batch ended"] == {("calls back", True)}
    assert layer.seen["test batch ended"] == {("evaluates", True)}
    model.evaluate(x, x[:, :1], verbose=0)
    assert layer.seen.pop("call") == {("evaluates", False)}
    model.predict(x, verbose=0)
    assert layer.seen.pop("call") == {("predicts", False)}
    model.save_weights(tmp_path / "m.weights.h5")
    model.load_weights(tmp_path / "m.weights.h5")
    assert layer.seen["save"] == layer.seen["load"] == {("saves", False)}
    model.compile(optimizer="sgd", loss="mse")
    model.fit(x, x[:, :1], verbose=0)
    assert ("compiles", True) in layer.seen.pop("call")


def test_the_place_is_in_the_users_code():
    found = phase.of_main_thread()
    assert (found.kind, found.in_fit) == ("elsewhere", False)
    assert found.where.startswith("test_phase.py:")


def test_a_thread_that_has_ended(monkeypatch):
    over = threading.Thread(target=lambda: None)
    over.start()
    over.join()
    monkeypatch.setattr(threading, "main_thread", lambda: over)
    assert phase.of_main_thread() == phase.Phase("ended", False, "")


@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_is_collected_while_a_stack_is_read(monkeypatch, enabled):
    """Python 3.11 crashes where a collection lets the other thread return meanwhile."""
    seen = []
    monkeypatch.setattr(phase, "of_frame", lambda _: seen.append(gc.isenabled()))
    try:
        if not enabled:
            gc.disable()
        phase.of_main_thread()
        assert seen == [False] and gc.isenabled() == enabled
    finally:
        gc.enable()
