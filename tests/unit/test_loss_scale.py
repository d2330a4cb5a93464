"""Loss scaling around the optimizers: an overflow drops a whole window of samples."""

import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf

import gsnr_tf
from tests.problems import OPTIMIZERS, assert_same, values

pytestmark = pytest.mark.filterwarnings("ignore:.*samples an update")
every = pytest.mark.parametrize("row", OPTIMIZERS.values(), ids=list(OPTIMIZERS))
K = 2
rng = np.random.default_rng(0)
X = rng.normal(size=(8, 4)).astype("float32")
Y = X[:, :1]


def wrapped(row, scale=16.0, growth=3):
    inner = row.make(gradient_accumulation_steps=K)
    return keras.optimizers.LossScaleOptimizer(
        inner, initial_scale=scale, dynamic_growth_steps=growth
    )


def one_call(optimizer, weights, value):
    """A micro-batch whose gradient, before scaling, is `value`."""
    gradient = optimizer.scale_loss(tf.constant([[value, 2 * value]]))
    optimizer.apply_gradients([(gradient, weights)])


def window(optimizer, weights, *samples):
    for value in samples:
        one_call(optimizer, weights, value)


def kernel():
    return keras.Variable([[1.0, 2.0]], name="kernel")


@every
def test_wrapping_by_hand_and_by_compile_gives_ours(row):
    by_hand = wrapped(row)
    assert type(by_hand) is gsnr_tf.LossScaleOptimizer
    assert by_hand.initial_scale == 16 and by_hand.dynamic_growth_steps == 3
    keras.config.set_dtype_policy("mixed_float16")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(row.make(gradient_accumulation_steps=K), "mse")
    assert type(model.optimizer) is gsnr_tf.LossScaleOptimizer
    assert type(model.optimizer.inner_optimizer) is row.optimizer
    model.compile(gsnr_tf.DistributedOptimizer(keras.optimizers.SGD()), "mse")
    assert type(model.optimizer) is gsnr_tf.LossScaleOptimizer
    model.compile(by_hand, "mse")
    assert model.optimizer is by_hand


def test_around_a_plain_optimizer_it_stays_keras_own():
    for inner in (keras.optimizers.SGD(), keras.optimizers.Lamb(0.1)):
        optimizer = keras.optimizers.LossScaleOptimizer(inner)
        assert type(optimizer) is keras.optimizers.LossScaleOptimizer


@every
def test_scaling_by_powers_of_two_changes_nothing(row):
    optimizer, weights, plain = wrapped(row), kernel(), kernel()
    alone = row.make(gradient_accumulation_steps=K)
    for update in range(5):
        window(optimizer, weights, 1.0, 1.5 + update)
        for value in (1.0, 1.5 + update):
            alone.apply_gradients([(tf.constant([[value, 2 * value]]), plain)])
    assert_same(values([weights]), values([plain]))
    assert int(optimizer.iterations) == 5


@every
@pytest.mark.parametrize("bad", [(np.inf, 1.0), (1.0, np.nan), (np.inf, -np.inf)])
def test_overflow_drops_the_whole_window(row, bad):
    optimizer, weights = wrapped(row), kernel()
    inner = optimizer.inner_optimizer
    window(optimizer, weights, 1.0, 2.0)
    untouched = [weights] + [v for v in inner.variables if v is not inner._skipped]
    before = values(untouched)
    one_call(optimizer, weights, bad[0])
    # Within a window the scale is constant, or its samples would not match.
    assert float(optimizer.dynamic_scale) == 16
    one_call(optimizer, weights, bad[1])
    assert float(optimizer.dynamic_scale) == 8
    assert int(optimizer.step_counter) == 0
    assert_same(values(untouched), before)
    assert int(inner.skipped_steps) == 1
    assert int(optimizer.iterations) == 1
    window(optimizer, weights, 1.0, 2.0)
    assert float(optimizer.dynamic_scale) == 8
    assert int(optimizer.iterations) == 2 and int(inner.skipped_steps) == 1


@every
def test_the_scale_grows_after_enough_updates_in_a_row(row):
    optimizer, weights, scales = wrapped(row, growth=3), kernel(), []
    for good in (1, 1, 0, 1, 1, 1, 1, 1, 1):
        window(optimizer, weights, 1.0, 2.0 if good else np.inf)
        scales.append(float(optimizer.dynamic_scale))
    assert scales == [16, 16, 8, 8, 8, 16, 16, 16, 32]


def test_scale_and_counter_are_keras_own_where_each_call_is_an_update():
    def trained(rule):
        optimizer = keras.optimizers.LossScaleOptimizer(
            rule, initial_scale=16.0, dynamic_growth_steps=2
        )
        weights, history = kernel(), []
        for value in (1.0, np.inf, 1.0, 1.0, 1.0, np.nan, np.inf, 1.0, 1.0):
            one_call(optimizer, weights, value)
            history.append([float(optimizer.dynamic_scale), int(optimizer.step_counter)])
        return np.array(history), values([weights])[0]

    ours = trained(gsnr_tf.DistributedOptimizer(keras.optimizers.Adam(0.1)))
    assert_same(ours, trained(keras.optimizers.Adam(0.1)))


@every
def test_config_round_trip_and_pickle(row):
    optimizer = wrapped(row)
    config = optimizer.get_config()
    serialized = keras.saving.serialize_keras_object(optimizer)
    for again in (
        keras.saving.deserialize_keras_object(serialized),
        pickle.loads(pickle.dumps(optimizer)),
    ):
        assert type(again) is gsnr_tf.LossScaleOptimizer
        assert type(again.inner_optimizer) is row.optimizer
        assert again.get_config() == config


@every
def test_a_saved_model_goes_on_as_if_nothing_had_been(row, tmp_path):
    def train(model, calls):
        for _ in range(calls):
            model.train_on_batch(X, Y)

    def state(model):
        return values(model.variables + model.optimizer.variables)

    keras.config.set_dtype_policy("mixed_float16")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    # So large a scale overflows float16 at first.
    model.compile(wrapped(row, scale=2.0**18, growth=2), "mse", run_eagerly=True)
    train(model, 5)
    assert int(model.optimizer.inner_optimizer.skipped_steps) > 0
    model.save(tmp_path / "model.keras")
    pickled = pickle.dumps(model)
    train(model, 9)
    assert int(model.optimizer.iterations) > 0
    for other in (
        keras.models.load_model(tmp_path / "model.keras"),
        pickle.loads(pickled),
    ):
        other.run_eagerly = True
        train(other, 9)
        assert_same(state(other), state(model))


@every
def test_mixed_precision_fit(row):
    keras.config.set_dtype_policy("mixed_float16")
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, dtype="float16")])
    model.compile(row.make(gradient_accumulation_steps=K), "mse")
    losses = model.fit(X, Y, batch_size=2, epochs=8, shuffle=False, verbose=0)
    assert losses.history["loss"][-1] < losses.history["loss"][0]
    skipped = int(model.optimizer.inner_optimizer.skipped_steps)
    assert int(model.optimizer.iterations) + skipped == 8 * 4 / K
    assert float(model.optimizer.dynamic_scale) == 2.0 ** (15 - skipped)


@every
def test_sparse_gradients_are_unscaled(row):
    optimizer, plain = wrapped(row), row.make(gradient_accumulation_steps=K)
    scaled, unscaled = kernel(), kernel()
    for value in (1.0, 3.0):
        rows = tf.constant([[value, 2 * value]])
        for rule, weights, factor in ((optimizer, scaled, 16.0), (plain, unscaled, 1.0)):
            gradient = tf.IndexedSlices(rows * factor, tf.constant([0]), tf.constant([1, 2]))
            rule.apply_gradients([(gradient, weights)])
    assert_same(values([scaled]), values([unscaled]))


@every
def test_examples_pass_through(row):
    optimizer, plain = wrapped(row), row.make(gradient_accumulation_steps=K)
    scaled, alone = kernel(), kernel()
    for value, count in ((1.0, 3.0), (2.0, 1.0)):
        gradient = tf.constant([[value, 2 * value]])
        optimizer.apply_gradients([(16.0 * gradient, scaled)], examples=count)
        plain.apply_gradients([(gradient, alone)], examples=count)
    assert_same(values([scaled]), values([alone]))


@every
def test_state_of_another_kind_is_skipped_with_a_warning(row):
    """As in Keras: a checkpoint from before float16 was switched on, say."""
    weight = keras.Variable([1.0, 2.0])
    optimizer = keras.optimizers.LossScaleOptimizer(row.make(gradient_accumulation_steps=8))
    optimizer.build([weight])
    store = {}
    optimizer.inner_optimizer.save_own_variables(store)
    before = [v.numpy() for v in optimizer.variables]
    with pytest.warns(UserWarning, match="Skipping variable loading"):
        optimizer.load_own_variables(store)
    for variable, value in zip(optimizer.variables, before):
        np.testing.assert_array_equal(variable.numpy(), value)


def scales_of(optimizer, steps):
    """The scale after each update; 0 stands for one that overflows."""
    weights, scales = kernel(), []
    for good in steps:
        window(optimizer, weights, 1.0, 2.0 if good else np.inf)
        scales.append(float(optimizer.dynamic_scale))
    return scales


def limited(**arguments):
    inner = OPTIMIZERS["sgd"].make(gradient_accumulation_steps=K)
    return gsnr_tf.LossScaleOptimizer(inner, initial_scale=16.0, **arguments)


def test_hysteresis_forgives_overflows_until_the_scale_grows():
    optimizer = limited(hysteresis=2, dynamic_growth_steps=3)
    steps = [0, 1, 0, 0, 1, 1, 1, 0, 1, 0]
    assert scales_of(optimizer, steps) == [16, 16, 8, 4, 4, 4, 8, 8, 8, 4]
    assert int(optimizer.inner_optimizer.skipped_steps) == 5


def test_a_forgiven_overflow_still_restarts_the_count_to_growth():
    optimizer = limited(hysteresis=2, dynamic_growth_steps=2)
    assert scales_of(optimizer, [1, 0, 1, 1]) == [16, 16, 16, 32]


def test_the_scale_stays_above_its_minimum():
    assert scales_of(limited(min_scale=5.0), [0, 0, 0, 1]) == [8, 5, 5, 5]


@pytest.mark.parametrize("arguments", [{"hysteresis": 0}, {"min_scale": -1.0}, {"min_scale": 17.0}])
def test_limits_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="Received: .*scale=|Received: hysteresis=0"):
        limited(**arguments)


def test_limits_survive_the_config():
    optimizer = limited(hysteresis=3, min_scale=2.0)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert (again.hysteresis, again.min_scale, again.initial_scale) == (3, 2.0, 16.0)
