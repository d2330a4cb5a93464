"""Saved models name the class that DistributedOptimizer wrapped, the user's or Keras'."""

import json
import zipfile

import keras
import numpy as np
import pytest

import gsnr_tf
from gsnr_tf.optimizers import distributed

KerasAdam = keras.optimizers.Adam


def users_adam(register=False):
    """A class named like one of Keras, with an argument that Keras' has not."""

    class Adam(KerasAdam):
        def __init__(self, learning_rate=0.001, boost=1.0, **kwargs):
            super().__init__(learning_rate, **kwargs)
            self.boost = boost

        def update_step(self, gradient, variable, learning_rate):
            super().update_step(gradient, variable, self.boost * learning_rate)

        def get_config(self):
            return {**super().get_config(), "boost": self.boost}

    if register:
        return keras.saving.register_keras_serializable("lab")(Adam)
    return Adam


def trained(optimizer):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer=gsnr_tf.DistributedOptimizer(optimizer), loss="mse")
    fit(model)
    return model


def fit(model):
    x = np.arange(8, dtype="float32").reshape(4, 2) / 8
    model.fit(x, x[:, :1], verbose=0, shuffle=False)
    return model.get_weights()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.keras"


def forget(rule):
    """As in another process, where nobody has wrapped the class."""
    distributed._wrapped.pop(distributed._full_name(rule))


def test_a_class_of_the_user_does_not_replace_that_of_keras(path):
    model = trained(KerasAdam(0.01))
    model.save(path)
    own = trained(users_adam()(0.01, boost=2.0))
    loaded = keras.models.load_model(path)
    assert type(loaded.optimizer) is type(model.optimizer) is not type(own.optimizer)
    np.testing.assert_array_equal(fit(loaded)[0], fit(model)[0])


@pytest.mark.parametrize("known", ["custom_objects", "registered", "wrapped before"])
def test_a_class_of_the_user_is_loaded_where_it_is_known(path, known):
    rule = users_adam(register=known == "registered")
    model = trained(rule(0.01, boost=2.0))
    model.save(path)
    if known != "wrapped before":
        forget(rule)
    # Of what was made since, the name alone is the same.
    other = trained(type("Adam", (keras.optimizers.SGD,), {"__module__": "elsewhere"})(0.1))
    objects = {"Adam": rule} if known == "custom_objects" else None
    loaded = keras.models.load_model(path, custom_objects=objects)
    assert type(loaded.optimizer) is type(model.optimizer) is not type(other.optimizer)
    assert loaded.optimizer.boost == 2.0
    np.testing.assert_array_equal(fit(loaded)[0], fit(model)[0])


def test_a_class_that_is_not_known_is_named(path):
    rule = users_adam()
    trained(rule(0.01)).save(path)
    forget(rule)
    with pytest.raises(ValueError, match=r"users_adam.*Adam.*custom_objects=\{'Adam'"):
        keras.models.load_model(path)


def test_models_of_keras_rules_keep_the_name_of_the_first_release(path):
    trained(KerasAdam(0.01)).save(path)
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))["compile_config"]["optimizer"]
    assert config["registered_name"] == "gsnr_tf>DistributedAdam"
    assert "rule" not in config["config"]


def test_a_config_makes_a_second_optimizer_of_the_same_class():
    optimizer = gsnr_tf.DistributedOptimizer(users_adam()(0.01, boost=3.0))
    config = optimizer.get_config()
    config["learning_rate"] = 0.02
    second = type(optimizer).from_config(config)
    assert type(second) is type(optimizer)
    assert (second.boost, float(second.learning_rate)) == (3.0, np.float32(0.02))
