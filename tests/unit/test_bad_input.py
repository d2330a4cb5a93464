"""What a user can get wrong is said at once, with what was received."""

import sys
import warnings

import keras
import pytest
import tensorflow as tf

import gsnr_tf
from tests.problems import OPTIMIZERS

every = pytest.mark.parametrize("row", OPTIMIZERS.values(), ids=list(OPTIMIZERS))
SOUND = {"gradient_accumulation_steps": 8}


def variable():
    return keras.Variable([[1.0, 2.0]], name="kernel")


@every
@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"gamma": 0.0}, r"gamma must be in \(0, 1\]. Received: gamma=0.0"),
        ({"gamma": 1.5}, r"gamma must be in \(0, 1\]. Received: gamma=1.5"),
        ({"gamma": float("nan")}, "Received: gamma=nan"),
        (
            {"gamma": 0.5, "ceiling": 0.25},
            "ceiling must be at least gamma. Received: ceiling=0.25, gamma=0.5",
        ),
        ({"ceiling": float("nan")}, "Received: ceiling=nan"),
        (
            {"estimator": "literal"},
            r"estimator must be one of \('paper', 'robust', 'james_stein'\). Received: 'literal'",
        ),
        (
            {"clipnorm": 1.0, "clipvalue": 2.0},
            "Only one of .* can be set. Received: clipnorm=1.0, clipvalue=2.0",
        ),
        ({"learning_rate": 1}, "should be float, .* Received instead: learning_rate=1"),
        ({"sharding": "zero"}, r"sharding must be one of \('auto', .*Received: 'zero'"),
        ({"sample": "rank"}, "sample must be one of .*Received: 'rank'"),
        ({"bucket_bytes": 0}, "bucket_bytes must be at least 1. Received: bucket_bytes=0"),
        (
            {"communication_dtype": "int8"},
            "communication_dtype must be one of .*Received: 'int8'",
        ),
        ({"gradient_accumulation_steps": 1}, "integer >= 2. Received: .*=1"),
        (
            {"exclude_from_weight_decay": "bias"},
            r"must be a list of regular expressions.*'bias'; write \['bias'\]",
        ),
        (
            {"exclude_from_weight_decay": ["a", "(b"]},
            r"exclude_from_weight_decay has '\(b', which is not a regular expression",
        ),
    ],
    ids=lambda value: str(list(value)) if isinstance(value, dict) else "",
)
def test_at_construction(row, arguments, message):
    with pytest.raises(ValueError, match=message):
        row.make(**arguments)


@every
def test_an_argument_that_is_none(row):
    with pytest.raises(TypeError, match="unexpected keyword argument 'gama'"):
        row.make(gama=0.1)


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("adam", {"second_moment": "row"}, "'adapted' or 'raw'.*second_moment='row'"),
        ("lamb", {"second_moment": False}, "'adapted' or 'raw'.*second_moment=False"),
        ("adam", {"beta_3": 1.0}, r"beta_3 must be in \[0, 1\). Received: beta_3=1.0"),
        ("lamb", {"beta_1": -0.1}, r"beta_1 must be in \[0, 1\). Received: beta_1=-0.1"),
        ("sgd", {"momentum": 1.5}, r"momentum must be in \[0, 1\]. Received: 1.5"),
        ("lars", {"momentum": -1.0}, r"momentum must be in \[0, 1\]. Received: -1.0"),
        (
            "lamb",
            {"exclude_from_layer_adaptation": "bias"},
            r"exclude_from_layer_adaptation must be a list.*write \['bias'\]",
        ),
        (
            "lars",
            {"exclude_from_layer_adaptation": ["*"]},
            r"exclude_from_layer_adaptation has '\*', which is not",
        ),
    ],
)
def test_arguments_of_a_rule(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        OPTIMIZERS[name].make(**arguments)


def first_step(optimizer):
    optimizer.apply_gradients([(tf.ones((1, 2)), variable())])


@every
def test_one_sample_names_the_three_ways_out(row):
    with pytest.raises(ValueError) as raised:
        first_step(row.make())
    message = str(raised.value)
    for part in (
        row.optimizer.__name__,
        "gsnr-tf run --np 8",
        "strategy",
        "gradient_accumulation_steps",
        "Received: 1 worker",
    ):
        assert part in message


@every
@pytest.mark.parametrize("k, times", [(2, 1), (7, 1), (8, 0)])
def test_few_samples_warn_once(row, k, times):
    optimizer, weights = row.make(gradient_accumulation_steps=k), variable()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2 * k):
            optimizer.apply_gradients([(tf.ones((1, 2)), weights)])
    about_k = [w for w in caught if f"k={k} samples" in str(w.message)]
    assert len(about_k) == times


def test_few_samples_do_not_worry_the_robust_estimator():
    with pytest.warns(UserWarning, match="or take estimator='robust'"):
        first_step(OPTIMIZERS["lamb"].make(gradient_accumulation_steps=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        robust = {"estimator": "robust", "gradient_accumulation_steps": 2}
        first_step(OPTIMIZERS["lamb"].make(**robust))


@pytest.mark.parametrize(
    "name, argument",
    [(name, "exclude_from_weight_decay") for name in OPTIMIZERS]
    + [(name, "exclude_from_layer_adaptation") for name in ("lamb", "lars")],
)
def test_a_pattern_that_matches_nothing_warns(name, argument):
    optimizer = OPTIMIZERS[name].make(**{argument: ["kernel", "kernle"]}, **SOUND)
    with pytest.warns(UserWarning, match=r"'kernle' matches no variable.*\['kernel'\]"):
        optimizer.build([variable()])


@every
@pytest.mark.parametrize(
    "communicator, message",
    [
        ("nccl", "one of .*'auto'.*Received: 'nccl'"),
        ("strategy", "Received communicator='strategy'.*strategy.scope"),
    ],
)
def test_communicator(row, communicator, message):
    with pytest.raises(ValueError, match=message):
        row.make(communicator=communicator, **SOUND).build([variable()])


@every
def test_horovod_that_is_not_there(row, monkeypatch):
    monkeypatch.setitem(sys.modules, "horovod.tensorflow", None)
    with pytest.raises(ImportError, match="Horovod was asked for.*install-horovod"):
        row.make(communicator="horovod", **SOUND).build([variable()])


@every
def test_slices_in_a_single_process(row):
    with pytest.raises(ValueError, match="need Horovod and two ranks.*1 worker"):
        first_step(row.make(sharding="slices", **SOUND))


@every
def test_exclusion_comes_before_build(row):
    optimizer = row.make(**SOUND)
    optimizer.build([variable()])
    with pytest.raises(ValueError, match="before the optimizer is built"):
        optimizer.exclude_from_weight_decay(var_names=["kernel"])


def built_sgd():
    optimizer = keras.optimizers.SGD()
    optimizer.build([variable()])
    return optimizer


def multi_optimizer():
    return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(keras.optimizers.SGD()))


# Keras 3.12 to 3.14 have none.
MULTI_OPTIMIZER = [(multi_optimizer, ValueError, "leaves the updates to its inner optimizers")]
MULTI_OPTIMIZER *= hasattr(keras.optimizers, "MultiOptimizer")


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        (lambda: "sgd", TypeError, "takes an instance.*Received: 'sgd'"),
        (lambda: keras.optimizers.SGD, TypeError, "takes an instance.*Received: <class"),
        (lambda: gsnr_tf.GSNRSGD(), ValueError, "GSNRSGD reduces its gradients by itself"),
        (
            lambda: gsnr_tf.DistributedOptimizer(keras.optimizers.SGD()),
            ValueError,
            "DistributedSGD reduces its gradients by itself",
        ),
        (
            lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
            ValueError,
            "Wrap the inner optimizer",
        ),
        (built_sgd, ValueError, "SGD '.+' is already built"),
        *MULTI_OPTIMIZER,
    ],
)
def test_distributed_optimizer_of_the_wrong_thing(wrong, error, message):
    with pytest.raises(error, match=message):
        gsnr_tf.DistributedOptimizer(wrong())
