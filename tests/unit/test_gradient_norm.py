"""The norm of the last update's gradient, which every optimizer keeps."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import gsnr_tf
from tests.problems import EVERYTHING, feed

pytestmark = pytest.mark.filterwarnings("ignore:.*samples an update")
K = len(EVERYTHING.samples[0])
CLIPPED = {"gradient_accumulation_steps": K, "global_clipnorm": 0.5}


def keras_adam(**arguments):
    return gsnr_tf.DistributedOptimizer(keras.optimizers.AdamW(0.01, **arguments))


def norm_of(samples):
    """Of the mean of samples, in float64."""
    means = [np.mean(np.float64(s), axis=0) for s in zip(*samples)]
    return np.sqrt(sum(np.sum(mean**2) for mean in means))


@pytest.mark.parametrize("make", [keras_adam, gsnr_tf.GSNRLamb, gsnr_tf.GSNRSGD])
def test_it_is_that_of_the_mean_gradient_before_clipping(make):
    optimizer = make(**CLIPPED) if make is keras_adam else make(0.01, **CLIPPED)
    variables = EVERYTHING.variables()
    optimizer.build(variables)
    for samples in EVERYTHING.samples:
        feed(optimizer, variables, samples)
        expected = norm_of(samples)
        assert float(optimizer.gradient_norm) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("make", [keras_adam, lambda: gsnr_tf.GSNRSGD(0.1)])
def test_an_update_that_is_skipped_leaves_it(make):
    optimizer = make()
    optimizer.gradient_accumulation_steps = 2
    variable = keras.Variable(np.ones(2), dtype="float32")
    optimizer.build([variable])
    for value in (3.0, 5.0, 1.0, np.inf, 2.0):
        optimizer.apply_gradients([(tf.fill([2], value), variable)])
    assert int(optimizer.skipped_steps) == 1
    assert float(optimizer.gradient_norm) == pytest.approx(4 * 2**0.5)


def test_before_the_first_update_it_is_unknown():
    optimizer = keras_adam()
    optimizer.build([keras.Variable(np.ones(2), dtype="float32")])
    assert np.isnan(float(optimizer.gradient_norm))


def test_no_checkpoint_has_it_for_optimizers_of_keras(tmp_path):
    """What was saved before it was kept can be loaded, and the other way round."""
    optimizer, plain = keras_adam(), keras.optimizers.AdamW(0.01)
    variables = EVERYTHING.variables()
    for one in (optimizer, plain):
        one.build(variables)
    # One more: the number of updates that were skipped.
    assert len(optimizer.full_state()) == len(plain.variables) + 1
    path = tf.train.Checkpoint(optimizer=optimizer).write(str(tmp_path / "state"))
    names = [name for name, _ in tf.train.list_variables(path)]
    assert not any("signal" in name for name in names)
