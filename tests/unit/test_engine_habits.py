"""The engine as users of DeepSpeed's call it."""

import argparse
import json

import keras
import numpy as np
import pytest

from gsnr_tf.engine import ConfigError, initialize
from gsnr_tf.engine.habits import ARGUMENTS, REPLACED

CONFIG = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 4,
    "gradient_clipping": 0,
    "optimizer": {"type": "SGD", "params": {"lr": 0.1}},
}
DATA = (np.ones((16, 3), "float32"), np.ones((16, 1), "float32"))


def chain():
    keras.utils.set_random_seed(3)
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])


def test_four_values_are_unpacked():
    engine, optimizer, loader, scheduler = initialize(
        model=chain(), config=CONFIG, loss="mse", training_data=DATA
    )
    assert optimizer is engine.optimizer is engine.model.optimizer
    assert engine.module is engine.model
    assert len(loader) == 4
    assert scheduler.get_last_lr() == scheduler.get_lr() == engine.get_lr()
    with pytest.raises(RuntimeError, match=r"engine\.train_batch\(\) makes an update"):
        next(iter(loader))
    with pytest.raises(RuntimeError, match="leave step"):
        scheduler.step()
    assert engine.train() is engine.eval() is engine
    assert engine.is_gradient_accumulation_boundary()


def test_without_data_there_is_no_loader():
    engine, _, loader, _ = initialize(chain(), CONFIG, "mse")
    assert loader is None
    with pytest.raises(ValueError, match="There is no data"):
        engine.micro_batches_of_an_epoch()


@pytest.mark.parametrize("how", ["args", "config_params", "both"])
def test_the_configuration_by_its_other_names(how, tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(CONFIG))
    given = {
        "args": {"args": argparse.Namespace(deepspeed_config=str(path), local_rank=0)},
        "config_params": {"config_params": CONFIG},
        "both": {
            "config": str(path),
            "args": argparse.Namespace(deepspeed_config=str(path)),
        },
    }[how]
    model = chain()
    engine = initialize(
        model=model,
        loss="mse",
        model_parameters=model.trainable_variables,
        dist_init_required=None,
        **given,
    )
    assert engine.config.train_batch_size == 8


@pytest.mark.parametrize(
    "given, told",
    [
        ({}, "There is no configuration"),
        ({"config": CONFIG, "config_params": {"train_batch_size": 9}}, "are one thing, and differ"),
        ({"config": CONFIG, "model_parameters": []}, "said by layer.trainable"),
        *(({"config": CONFIG, name: 1}, f"{name} of deepspeed.init") for name in ARGUMENTS),
    ],
)
def test_what_cannot_be_honoured_says_what_to_do(given, told):
    with pytest.raises(ConfigError, match=told):
        initialize(chain(), loss="mse", **given)


def test_arguments_in_deepspeeds_order_are_told():
    with pytest.raises(ConfigError, match="takes the model first"):
        initialize(argparse.Namespace(deepspeed_config="x"), chain())


def test_an_iterator_gives_the_micro_batches_of_an_update():
    x = np.arange(24, dtype="float32").reshape(8, 3)
    y = np.ones((8, 1), "float32")
    one, other = initialize(chain(), CONFIG, "mse"), initialize(chain(), CONFIG, "mse")
    losses = one.train_batch((x, y)), other.train_batch(iter([(x[:4], y[:4]), (x[4:], y[4:])]))
    assert losses[0] == pytest.approx(losses[1])
    for mine, theirs in zip(one.model.get_weights(), other.model.get_weights()):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)
    with pytest.raises(ValueError, match="ended after 1 of 2 micro-batches"):
        other.train_batch(iter([(x[:4], y[:4])]))
    with pytest.raises(ValueError, match="Received: ndarray"):
        other.train_batch(iter([x, x]))


def test_what_is_not_here_names_what_replaces_it():
    engine = initialize(chain(), CONFIG, "mse")
    with pytest.raises(RuntimeError, match=r"engine\.train_batch\(\(x, y\)\) makes"):
        engine(np.ones((4, 3)))
    for name, advice in REPLACED.items():
        with pytest.raises(AttributeError) as caught:
            getattr(engine, name)
        assert f"engine.{name} of DeepSpeed is not here: {advice}." == str(caught.value)
    with pytest.raises(AttributeError, match="Engine has no 'nonsense'"):
        engine.nonsense()
