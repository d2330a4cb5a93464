"""Schedules count updates on several ranks."""

import math

import numpy as np
import pytest

K, PEAK, STEPS = 8, 0.25, 6


def walked(kind, window=K, skip=None):
    """How far a weight goes with each update, and the rate asked in mid-window.

    Args:
        kind: "keras", "gsnr" or "scaled".
        window: Micro-batches of an update after the second.
        skip: Number of the update at which rank 1 has an inf.
    """
    import warnings

    import keras
    import numpy as np
    import tensorflow as tf

    import gsnr_tf

    warnings.simplefilter("ignore")
    schedule = keras.optimizers.schedules.CosineDecay(PEAK, STEPS)
    arguments = {"gradient_accumulation_steps": K}
    if kind == "keras":
        inner = keras.optimizers.SGD(schedule, **arguments)
        optimizer = gsnr_tf.DistributedOptimizer(inner)
    else:
        optimizer = gsnr_tf.GSNRSGD(schedule, gamma=1.0, **arguments)
        optimizer.vary_window()
    outer = optimizer
    if kind == "scaled":
        outer = gsnr_tf.LossScaleOptimizer(optimizer, initial_scale=1.0)
    weight = keras.Variable([0.0])
    outer.build([weight])
    optimizer.connect()
    call = tf.function(lambda g: outer.apply_gradients([(g, weight)]))
    distances, rates = [], []
    for update in range(5):
        steps = K
        if update > 1 and window != K:
            optimizer.set_accumulation_steps(window)
            steps = window
        before = float(weight.numpy()[0])
        bad = update == skip and gsnr_tf.rank() == 1
        for index in range(steps):
            if index == steps - 1:
                rates.append(float(outer.learning_rate))
            scale = float(getattr(outer, "dynamic_scale", 1.0))
            call(tf.constant([np.inf if bad else scale], tf.float32))
        distances.append(before - float(weight.numpy()[0]))
    return distances, rates


def cosines(updates):
    return [PEAK * (1 + math.cos(math.pi * min(t, STEPS) / STEPS)) / 2 for t in updates]


@pytest.mark.parametrize("kind", ["keras", "gsnr", "scaled"])
def test_updates_of_all_ranks_count_once(on_ranks, kind):
    first, second = on_ranks(2, walked, kind)
    assert first == second
    distances, rates = first
    np.testing.assert_allclose(distances, cosines(range(5)), atol=1e-6)
    np.testing.assert_allclose(rates, cosines(range(5)), atol=1e-6)


@pytest.mark.parametrize("kind", ["keras", "scaled"])
def test_an_update_that_one_rank_spoils_counts_on_none(on_ranks, kind):
    first, second = on_ranks(2, walked, kind, K, 2)
    assert first == second
    np.testing.assert_allclose(first[1], cosines([0, 1, 2, 2, 3]), atol=1e-6)
    assert first[0][2] == 0


def test_where_the_window_grows_updates_of_the_first_one_count(on_ranks):
    first, second = on_ranks(2, walked, "gsnr", 2 * K)
    assert first == second
    np.testing.assert_allclose(first[0], cosines([0, 1, 2, 4, 6]), atol=1e-6)
