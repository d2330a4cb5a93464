"""The schedules: the rates that DeepSpeed's classes gave, and what holds at any size."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import gsnr_tf
from gsnr_tf.schedules import DEEPSPEED as SCHEDULES
from gsnr_tf.schedules import WarmupCosine

# What an optimizer had at its updates 0, 1, 2, … under DeepSpeed 0.16.5's own classes.
MEASURED = [
    (
        "WarmupLR",
        {"warmup_min_lr": 0.01, "warmup_max_lr": 0.5, "warmup_num_steps": 6},
        [0.01, 0.01, 0.1995579, 0.3104421, 0.3891158, 0.4501398, 0.5, 0.5, 0.5],
    ),
    (
        "WarmupLR",
        {"warmup_max_lr": 0.5, "warmup_num_steps": 6, "warmup_type": "linear"},
        [0.0, 0.0, 0.08333333, 0.1666667, 0.25, 0.3333333, 0.4166667, 0.5, 0.5],
    ),
    (
        "WarmupDecayLR",
        {
            "total_num_steps": 12,
            "warmup_min_lr": 0.01,
            "warmup_max_lr": 0.5,
            "warmup_num_steps": 4,
        },
        [
            *(0.01, 0.01, 0.255, 0.3983158, 0.5, 0.5, 0.43875, 0.3775, 0.31625, 0.255),
            *(0.19375, 0.1325, 0.07125),
        ],
    ),
    (
        "WarmupCosineLR",
        {
            "learning_rate": 0.1,
            "total_num_steps": 12,
            "warmup_min_ratio": 0.1,
            "warmup_num_steps": 4,
        },
        [
            *(0.0, 0.01, 0.055, 0.08132331, 0.1, 0.09619436, 0.0853568, 0.06913726),
            *(0.050005, 0.03087274, 0.0146532, 0.003815643, 1e-05),
        ],
    ),
    (
        "WarmupCosineLR",
        {
            "learning_rate": 0.1,
            "total_num_steps": 12,
            "warmup_num_steps": 4,
            "cos_min_ratio": 0.01,
            "warmup_type": "linear",
        },
        [
            *(0.0, 0.0, 0.025, 0.05, 0.075, 0.09623204, 0.08550179, 0.06944283),
            *(0.0505, 0.03155717, 0.01549821, 0.004767963, 0.001),
        ],
    ),
    (
        "OneCycle",
        {
            "cycle_min_lr": 0.01,
            "cycle_max_lr": 0.1,
            "cycle_first_step_size": 4,
            "cycle_second_step_size": 6,
            "decay_lr_rate": 0.5,
            "decay_step_size": 2,
        },
        [
            *(0.01, 0.0325, 0.055, 0.0775, 0.1, 0.085, 0.07, 0.055, 0.04, 0.025, 0.01),
            *(0.008, 0.006666667),
        ],
    ),
    (
        "OneCycle",
        {"cycle_min_lr": 0.01, "cycle_max_lr": 0.1, "cycle_first_step_size": 5},
        [
            *(0.01, 0.028, 0.046, 0.064, 0.082, 0.1, 0.082, 0.064, 0.046, 0.028, 0.01),
            *(0.01, 0.01),
        ],
    ),
    (
        "LRRangeTest",
        {
            "lr_range_test_min_lr": 0.01,
            "lr_range_test_step_size": 3,
            "lr_range_test_step_rate": 2.0,
        },
        [0.01, 0.01666667, 0.02333333, 0.03, 0.03666667, 0.04333333, 0.05],
    ),
    (
        "LRRangeTest",
        {
            "lr_range_test_min_lr": 0.01,
            "lr_range_test_step_size": 3,
            "lr_range_test_step_rate": 2.0,
            "lr_range_test_staircase": True,
        },
        [0.01, 0.01, 0.01, 0.03, 0.03, 0.03, 0.05],
    ),
]
every = pytest.mark.parametrize("name, params, rates", MEASURED)


@every
def test_every_update_has_deepspeeds_rate(name, params, rates):
    schedule = SCHEDULES[name](**params)
    found = [float(schedule(t)) for t in range(len(rates))]
    # Seven digits are within 5e-7, float32 within 6e-8.
    np.testing.assert_allclose(found, rates, rtol=5.6e-7, atol=0)


@every
def test_serialized_and_back_they_are_the_same(name, params, rates):
    schedule = SCHEDULES[name](**params)
    saved = keras.saving.serialize_keras_object(schedule)
    again = keras.saving.deserialize_keras_object(saved)
    assert type(again) is SCHEDULES[name]
    assert again.get_config() == schedule.get_config()
    assert params.items() <= again.get_config().items()


def saved_by_version_0_1(name, module, params):
    return {
        "module": f"gsnr_tf.{module}",
        "class_name": name,
        "config": {**params, "accumulation_steps": 2},
        "registered_name": f"gsnr_tf>{name}",
    }


@every
def test_what_version_0_1_saved_is_loaded(name, params, rates):
    """It made updates of calls by `accumulation_steps`; now the optimizer does."""
    saved = saved_by_version_0_1(name, "engine.schedules", params)
    schedule = keras.saving.deserialize_keras_object(saved)
    np.testing.assert_allclose(
        [float(schedule(t)) for t in range(len(rates))], rates, rtol=5.6e-7, atol=0
    )


def test_a_comparisons_schedule_of_version_0_1_is_loaded():
    saved = saved_by_version_0_1("WarmupCosine", "compare.schedule", {"peak": 0.5, "updates": 20})
    schedule = keras.saving.deserialize_keras_object(saved)
    assert schedule.get_config() == {"peak": 0.5, "updates": 20}
    assert float(schedule(1)) == 0.5


def test_the_argument_of_version_0_1_is_ignored_with_a_warning():
    with pytest.warns(DeprecationWarning, match="Received: accumulation_steps=4"):
        schedule = WarmupCosine(0.5, 20, accumulation_steps=4)
    assert float(schedule(1)) == 0.5
    with pytest.raises(TypeError, match="unexpected keyword"):
        WarmupCosine(0.5, 20, accumulation=4)


def test_the_cosine_of_comparisons_rises_over_a_tenth_and_falls_to_nothing():
    peak = tf.Variable(2.0)
    schedule = WarmupCosine(peak, updates=100)
    rates = [float(schedule(tf.constant(step))) for step in range(100)]
    np.testing.assert_allclose(rates[:10], 2 * np.arange(1, 11) / 10, rtol=1e-6)
    half = 2 * (1 + np.cos(np.pi * 45 / 90)) / 2
    np.testing.assert_allclose(rates[55], half, rtol=1e-5)
    assert max(rates) == 2.0 and 0 < rates[-1] < 0.001
    peak.assign(4.0)
    assert float(schedule(tf.constant(0))) == 2 * rates[0]
    with pytest.raises(ValueError, match="Received: updates=0"):
        WarmupCosine(0.1, 0)


def test_the_cosine_stays_at_its_end():
    schedule = SCHEDULES["WarmupCosineLR"](0.1, 12, warmup_num_steps=4, cos_min_ratio=0.01)
    np.testing.assert_allclose([float(schedule(t)) for t in (12, 13, 40)], 0.001, rtol=1e-6)


def test_a_late_update_still_counts():
    """float32 has no 2^24 + 1."""
    schedule = SCHEDULES["LRRangeTest"](1.0, lr_range_test_step_size=2**24)
    late = tf.constant(2**30 + 2**24, tf.int64)
    assert float(schedule(late)) == 1 + 65


def test_the_optimizer_uses_the_rate_of_its_update():
    """SGD on a constant gradient: the weight is minus the sum of the rates."""
    schedule = SCHEDULES["WarmupLR"](0.1, 0.5, 4, "linear")
    optimizer = gsnr_tf.GSNRSGD(schedule, gamma=1.0, gradient_accumulation_steps=2)
    weight = keras.Variable([0.0])

    @tf.function
    def call():
        optimizer.apply_gradients([(tf.constant([1.0]), weight)])

    walked = []
    with pytest.warns(UserWarning, match="samples an update"):
        for _ in range(6 * 2):
            call()
            walked.append(float(weight.numpy()[0]))
    rates = [0.1, 0.1, 0.2, 0.3, 0.4, 0.5]
    np.testing.assert_allclose(walked[1::2], -np.cumsum(rates), rtol=1e-6)


@pytest.mark.parametrize(
    "name, params, told",
    [
        ("WarmupLR", {"warmup_type": "cubic"}, "Received: warmup_type='cubic'"),
        ("WarmupLR", {"warmup_num_steps": -1}, "Received: warmup_num_steps=-1"),
        ("WarmupDecayLR", {"total_num_steps": 0}, "at least 1"),
        (
            "OneCycle",
            {"cycle_min_lr": 0, "cycle_max_lr": 1, "cycle_first_step_size": 0},
            "=0",
        ),
        ("LRRangeTest", {"lr_range_test_step_size": 0}, "at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused(name, params, told):
    with pytest.raises(ValueError, match=told):
        SCHEDULES[name](**params)


def test_the_logarithmic_warm_up_by_its_formula():
    schedule = SCHEDULES["WarmupLR"](0.2, 1.2, 50)
    for t in range(1, 50):
        expected = 0.2 + math.log(t) / math.log(50)
        assert float(schedule(t)) == pytest.approx(expected, rel=1e-6)


def test_one_cycle_goes_by_stairs():
    cycle = {"cycle_min_lr": 0.0, "cycle_max_lr": 1.0, "cycle_first_step_size": 4}
    schedule = SCHEDULES["OneCycle"](
        **cycle,
        cycle_second_step_size=6,
        cycle_first_stair_count=2,
        cycle_second_stair_count=3,
    )
    expected = [0, 0, 1 / 2, 1 / 2, 1, 2 / 3, 2 / 3, 1 / 3, 1 / 3, 0, 0, 0]
    found = [float(schedule(t)) for t in range(12)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    as_many = SCHEDULES["OneCycle"](**cycle, cycle_first_stair_count=2)
    expected = [0, 0, 1 / 2, 1 / 2, 1, 1 / 2, 1 / 2, 0, 0]
    np.testing.assert_allclose([float(as_many(t)) for t in range(9)], expected, rtol=1e-6)


def test_one_cycle_without_a_way_down_falls_at_once():
    schedule = SCHEDULES["OneCycle"](0.1, 0.5, cycle_first_step_size=2, cycle_second_step_size=0)
    found = [float(schedule(t)) for t in range(4)]
    np.testing.assert_allclose(found, [0.1, 0.3, 0.1, 0.1], rtol=1e-6)


def test_a_total_shorter_than_the_warm_up_ends_with_it():
    short = {"total_num_steps": 3, "warmup_num_steps": 4, "warmup_type": "linear"}
    cosine = SCHEDULES["WarmupCosineLR"](1.0, cos_min_ratio=0.1, **short)
    found = [float(cosine(t)) for t in range(7)]
    np.testing.assert_allclose(found, [0, 0, 0.25, 0.5, 0.75, 0.1, 0.1], rtol=1e-6)
    decay = SCHEDULES["WarmupDecayLR"](warmup_max_lr=1.0, **short)
    found = [float(decay(t)) for t in range(7)]
    np.testing.assert_allclose(found, [0, 0, 0.25, 0.5, 0.75, 0, 0], rtol=1e-6)
