"""`fit_in_strategy` on replicas: as one process with the whole batch."""

import json
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

import gsnr_tf
from gsnr_tf.strategy import is_chief
from tests import strategy_training as training

pytestmark = pytest.mark.filterwarnings("ignore:.*samples an update")


@pytest.fixture(scope="module")
def mirrored():
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def assert_alike(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-5, err_msg=name)


def fit(strategy, optimizer, dataset=None, **arguments):
    with strategy.scope():
        model = training.model(optimizer())
    dataset = dataset or training.batches()
    history = gsnr_tf.fit_in_strategy(model, dataset, training.EPOCHS, verbose=0, **arguments)
    return training.result(model, history)


def test_it_equals_keras_fit_of_the_whole_batch(mirrored):
    """Uneven batches, sample weights, a regularizer, metrics of training and validation."""
    whole = training.batches()
    found = fit(mirrored, training.mean_optimizer, validation_data=whole)
    keras.backend.clear_session()
    model = training.model(training.plain_optimizer())
    history = model.fit(whole, epochs=training.EPOCHS, verbose=0, validation_data=whole)
    assert_alike(found, training.result(model, history))
    assert len(found["val_error"]) == training.EPOCHS


@pytest.mark.slow
def test_samples_of_replicas_are_those_of_one_process(mirrored):
    """Windows of 2 batches on 2 replicas, of 4 in one process; 14 batches in all."""
    found = fit(mirrored, lambda: training.gsnr_optimizer(2))
    keras.backend.clear_session()
    alone = tf.distribute.get_strategy()
    expected = fit(alone, lambda: training.gsnr_optimizer(4), training.slices())
    assert_alike(found, expected)


class StopsAtOnce(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.steps = []

    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = True
        self.steps.append((batch, sorted(logs)))


def test_epochs_of_some_steps_and_an_end_to_them():
    model = training.model(training.mean_optimizer())
    callback = StopsAtOnce()
    history = gsnr_tf.fit_in_strategy(
        model, training.batches().repeat(), 5, steps_per_epoch=3, callbacks=[callback], verbose=0
    )
    assert history.epoch == [0]
    assert callback.steps == [(n, ["error", "loss", "mae"]) for n in range(3)]


def test_data_that_ends_too_soon_is_told():
    model = training.model(training.mean_optimizer())
    with pytest.raises(ValueError, match="no batch left"):
        gsnr_tf.fit_in_strategy(model, training.batches(), 3, steps_per_epoch=7, verbose=0)


def test_an_optimizer_that_cannot_weigh_replicas_is_refused(mirrored):
    with mirrored.scope():
        model = training.model("adam")
    with pytest.raises(TypeError, match=r"DistributedOptimizer\(optimizer\)"):
        gsnr_tf.fit_in_strategy(model, training.batches())


def test_an_optimizer_from_outside_of_the_strategy_is_refused(mirrored):
    optimizer = training.gsnr_optimizer(2)
    with mirrored.scope():
        model = training.model(optimizer)
    with pytest.raises(ValueError, match="optimizer outside of it"):
        gsnr_tf.fit_in_strategy(model, training.batches())


@pytest.mark.parametrize("chief", [[], ["localhost:3"]])
def test_one_worker_prints(monkeypatch, chief):
    workers = ["localhost:1", "localhost:2"]
    tasks = [("chief", 0)] * bool(chief) + [("worker", 0), ("worker", 1)]
    printing = []
    for kind, index in tasks:
        cluster = {"worker": workers, **({"chief": chief} if chief else {})}
        task = {"cluster": cluster, "task": {"type": kind, "index": index}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(task))
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        printing.append(is_chief(types.SimpleNamespace(cluster_resolver=resolver)))
    assert printing == [True] + [False] * (len(tasks) - 1)


def test_what_is_no_batch_is_refused():
    model = training.model(training.mean_optimizer())
    with pytest.raises(ValueError, match="no batch dimension"):
        gsnr_tf.fit_in_strategy(model, training.batches().map(lambda x, *_: (x, 1.0)))
