"""Replicas of a tf.distribute strategy: four logical CPUs stand for four devices."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.distribute import mirrored_strategy

import gsnr_tf
from gsnr_tf.layers import Embedding

REPLICAS = 4
SHAPES = [(5, 3), (3,), ()]
OPTIMIZERS = {
    "sgd": (gsnr_tf.GSNRSGD, {"momentum": 0.9, "weight_decay": 0.01}),
    "adam": (gsnr_tf.GSNRAdam, {"weight_decay": 0.01, "use_ema": True}),
    "lars": (gsnr_tf.GSNRLars, {"weight_decay": 0.01, "estimator": "robust"}),
    "lamb": (gsnr_tf.GSNRLamb, {"weight_decay": 0.01, "global_clipnorm": 1.0}),
}


@pytest.fixture(scope="module")
def mirrored():
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(REPLICAS)])


def samples(updates, number):
    """`[update, sample]` lists of gradients."""
    rng = np.random.default_rng(5)
    return [
        [[rng.normal(size=s).astype("float32") for s in SHAPES] for _ in range(number)]
        for _ in range(updates)
    ]


def variables():
    rng = np.random.default_rng(1)
    return [keras.Variable(rng.normal(size=shape)) for shape in SHAPES]


def alone(make, arguments, data):
    weights = variables()
    optimizer = make(0.1, gradient_accumulation_steps=len(data[0]), **arguments)
    for window in data:
        for sample in window:
            optimizer.apply_gradients(zip(map(tf.constant, sample), weights))
    return [w.numpy() for w in weights], optimizer


@pytest.mark.parametrize("steps", [None, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_replicas_equal_one_process_that_holds_their_samples(mirrored, optimizer, steps):
    compare_with_one_process(mirrored, optimizer, steps)


def test_so_do_replicas_that_never_meet(monkeypatch):
    """TPUs stay in the replica, with collectives there; other devices can, too."""
    monkeypatch.setattr(mirrored_strategy.MirroredExtended, "_use_merge_call", lambda self: False)
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(REPLICAS)])
    compare_with_one_process(strategy, "adam", 3)


def compare_with_one_process(mirrored, optimizer, steps):
    make, arguments = OPTIMIZERS[optimizer]
    calls = steps or 1
    data = samples(3, REPLICAS * calls)
    expected, reference = alone(make, arguments, data)
    with mirrored.scope():
        weights = variables()
        trained = make(0.1, gradient_accumulation_steps=steps, **arguments)
        trained.build(weights)

    @tf.function
    def step(gradients):
        # By convention the loss of a replica is divided by their number.
        scaled = [g / REPLICAS for g in gradients]
        mirrored.run(lambda g: trained.apply_gradients(zip(g, weights)), args=(spread(scaled),))

    def spread(stacked):
        def of_replica(g):
            return mirrored.experimental_distribute_values_from_function(
                lambda context: g[context.replica_id_in_sync_group]
            )

        return [of_replica(g) for g in stacked]

    for window in data:
        for call in range(calls):
            own = window[call::calls]
            step([tf.stack(parts) for parts in zip(*own)])
    assert trained.samples == REPLICAS * calls
    assert step.experimental_get_tracing_count() == 1
    assert int(trained.iterations.numpy()) == 3
    for weight, value in zip(weights, expected):
        copies = mirrored.experimental_local_results(weight.value)
        for copy in copies:
            np.testing.assert_array_equal(copy, copies[0])
        np.testing.assert_allclose(copies[0], value, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(float(trained.gsnr), float(reference.gsnr), rtol=1e-4)
    for kept, value in zip(
        getattr(trained, "_model_variables_moving_average", []),
        getattr(reference, "_model_variables_moving_average", []),
    ):
        np.testing.assert_allclose(kept.numpy(), value.numpy(), rtol=2e-5, atol=2e-6)


def linear_model(**arguments):
    model = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(1, use_bias=False, kernel_initializer="ones", **arguments),
        ]
    )
    return model


@pytest.mark.parametrize("steps", [None, 2])
def test_fit_equals_one_process_that_accumulates(mirrored, steps):
    """Keras divides the loss by the replicas and fails to accumulate."""
    x = np.random.default_rng(0).normal(size=(32, 2)).astype("float32")
    y = x.sum(1, keepdims=True) ** 2
    calls = steps or 1

    def trained(replicas, accumulate, batch):
        model = linear_model()
        optimizer = gsnr_tf.GSNRSGD(0.1, gradient_accumulation_steps=accumulate)
        model.compile(optimizer=optimizer, loss="mse")
        model.fit(x, y, batch_size=batch, shuffle=False, verbose=0)
        return model.get_weights()[0]

    with mirrored.scope():
        together = trained(REPLICAS, steps, 2 * REPLICAS)
    np.testing.assert_allclose(together, trained(1, REPLICAS * calls, 2), rtol=1e-5)


@pytest.mark.parametrize("steps", [None, 2])
def test_tables_on_replicas_equal_those_of_one_process(mirrored, steps):
    """Only rows that are touched, also where replicas touch different ones."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 40, (64, 2)), rng.normal(size=(64, 1)).astype("float32")
    calls = steps or 1

    def trained(accumulate, batch):
        keras.utils.set_random_seed(0)
        layers = [Embedding(40, 3), keras.layers.Flatten(), keras.layers.Dense(1)]
        model = keras.Sequential(layers)
        arguments = {"estimator": "robust", "gradient_accumulation_steps": accumulate}
        model.compile(gsnr_tf.GSNRAdam(0.1, sparse="lazy", **arguments), loss="mse")
        model.fit(x, y, batch_size=batch, epochs=2, shuffle=False, verbose=0)
        assert model.optimizer._layout.is_table == [True, False, False]
        return model.get_weights()

    with mirrored.scope():
        together = trained(steps, 2 * REPLICAS)
    for one, other in zip(together, trained(REPLICAS * calls, 2)):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [None, 2])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_an_overflow_on_one_replica_is_skipped_by_all(mirrored, policy, steps):
    """Keras asks replica 0 alone, and the others' infinities reach the weights."""
    keras.config.set_dtype_policy(policy)
    # Small enough not to overflow by themselves at the initial scale of 2**15.
    x = 0.1 * np.random.default_rng(0).normal(size=(48, 2)).astype("float32")
    calls = steps or 1
    batch = 16 // calls
    # Replica 2 of the second window.
    x[16 + batch // 2] = np.inf
    with mirrored.scope():
        model = linear_model()
        optimizer = gsnr_tf.GSNRAdam(0.1, gradient_accumulation_steps=steps)
        model.compile(optimizer=optimizer, loss="mse")
    history = []
    for start in (0, 16, 32):
        rows = slice(start, start + 16)
        y = np.full((16, 1), 0.1)
        model.fit(x[rows], y, batch_size=batch, shuffle=False, verbose=0)
        history.append(model.get_weights()[0])
        state = [*model.weights, *optimizer.variables]
        if policy == "mixed_float16":
            state.append(model.optimizer.dynamic_scale)
        for variable in state:
            copies = mirrored.experimental_local_results(variable.value)
            assert len({copy.numpy().tobytes() for copy in copies}) == 1
            assert np.isfinite(copies[0].numpy()).all()
    np.testing.assert_array_equal(history[0], history[1])
    assert (history[1] != history[2]).any()
    assert int(optimizer.skipped_steps) == 1
    assert int(optimizer.iterations.numpy()) == 2
    if policy == "mixed_float16":
        assert float(model.optimizer.dynamic_scale.numpy()) == 2.0**14


def test_gradients_applied_outside_of_a_replica_are_refused(mirrored):
    with mirrored.scope():
        weights = variables()
        optimizer = gsnr_tf.GSNRSGD(0.1)
        optimizer.build(weights)
        with pytest.raises(RuntimeError, match="inside a function that `strategy.run`"):
            optimizer.apply_gradients(zip(map(tf.ones, SHAPES), weights))


def test_keras_optimizers_accumulate_and_clip_after_reduction_too(mirrored):
    with mirrored.scope():
        weight = keras.Variable(tf.zeros([2]))
        optimizer = gsnr_tf.DistributedOptimizer(
            keras.optimizers.SGD(1.0, global_clipnorm=1.0, gradient_accumulation_steps=2)
        )
        optimizer.build([weight])

    @tf.function
    def step():
        def apply():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            own = tf.gather([[10.0, 0.0], [-10.0, 0.5], [0.0, 0.5], [0.0, 0.0]], replica)
            optimizer.apply_gradients([(own / REPLICAS, weight)])

        mirrored.run(apply)

    step()
    np.testing.assert_array_equal(weight.numpy(), [0, 0])
    step()
    np.testing.assert_allclose(weight.numpy(), [0, -0.25])
    assert float(optimizer.gradient_norm) == 0.25
