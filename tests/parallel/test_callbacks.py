"""The callbacks that replace Horovod's, all of which fail under Keras 3."""

import numpy as np
import pytest


def broadcast():
    import keras

    import gsnr_tf

    rank = gsnr_tf.rank()
    keras.utils.set_random_seed(rank)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(1),
        ]
    )
    optimizer = gsnr_tf.GSNRAdam(0.01)
    optimizer.build(model.trainable_variables)
    # As if rank 1 alone had loaded a checkpoint.
    for variable in [*model.non_trainable_variables[:2], *optimizer.variables]:
        variable.assign(variable + rank)
    model.compile(optimizer=optimizer, loss="mse")
    callback = gsnr_tf.callbacks.BroadcastGlobalVariablesCallback(root_rank=1)
    callback.set_model(model)
    callback.on_train_begin()
    seeds = [v.numpy().tolist() for v in model.variables if "seed" in v.path]
    state = [v.numpy() for v in model.variables if "seed" not in v.path]
    return state + [v.numpy() for v in optimizer.variables], seeds


def test_all_state_comes_from_the_root_and_seeds_stay(on_ranks):
    (first, seeds), (second, other_seeds) = on_ranks(2, broadcast)
    for value, other in zip(first, second):
        np.testing.assert_array_equal(value, other)
    assert any((value == 1).all() for value in first if value.shape == ())
    assert seeds and seeds != other_seeds


def model_without_input_shape():
    import keras
    import numpy as np

    import gsnr_tf

    keras.utils.set_random_seed(gsnr_tf.rank())
    model = keras.Sequential([keras.layers.Dense(3), keras.layers.BatchNormalization()])
    model.compile(optimizer=gsnr_tf.GSNRSGD(0.1), loss="mse")
    x = np.random.default_rng(gsnr_tf.rank()).normal(size=(4, 4)).astype("float32")
    callback = gsnr_tf.callbacks.BroadcastGlobalVariablesCallback()
    model.fit(x, x[:, :3], verbose=0, callbacks=[callback])
    return [v.numpy() for v in model.variables]


def test_a_model_built_by_its_first_batch_is_shared_after_it(on_ranks):
    first, second = on_ranks(2, model_without_input_shape)
    for value, other in zip(first, second):
        np.testing.assert_array_equal(value, other)


def averaged():
    import keras
    import numpy as np

    import gsnr_tf

    rank = gsnr_tf.rank()
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer=gsnr_tf.GSNRSGD(0.0), loss="mse")
    seen = {}

    class See(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.update(logs)

    x = np.ones((4, 2), "float32")
    history = model.fit(
        x,
        np.full((4, 1), float(rank)),
        validation_data=(x, np.zeros((4, 1))) if rank == 0 else None,
        callbacks=[gsnr_tf.callbacks.MetricAverageCallback(), See()],
        verbose=0,
    )
    own = float(model.evaluate(x, np.full((4, 1), float(rank)), verbose=0))
    return own, seen, history.history["loss"][0]


def test_metrics_are_the_mean_over_ranks_for_those_that_come_after(on_ranks):
    (own, seen, logged), (other_own, other_seen, other_logged) = on_ranks(2, averaged)
    assert own != other_own
    np.testing.assert_allclose(seen["loss"], (own + other_own) / 2, rtol=1e-5)
    assert seen["loss"] == other_seen["loss"] == logged == other_logged
    assert seen["val_loss"] == other_seen["val_loss"]


def at_epoch_end(logs_by_rank):
    """What MetricAverageCallback makes of an epoch's logs on this rank."""
    import keras

    import gsnr_tf

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    callback = gsnr_tf.callbacks.MetricAverageCallback()
    callback.set_model(model)
    logs = logs_by_rank(gsnr_tf.rank())
    try:
        callback.on_epoch_end(0, logs)
    except ValueError as error:
        return str(error)
    return logs


def logs_of_many_kinds(rank):
    import keras
    import numpy as np
    import tensorflow as tf

    return {
        "number": rank,
        "float32": np.float32(rank),
        "bad": float("nan") if rank else 1.0,
        "array": np.array([[1.0, rank], [2.0, np.nan if rank else 0.0]], "float32"),
        "tensor": tf.constant([rank, 2 * rank]),
        "bfloat16": tf.constant(rank, tf.bfloat16),
        "variable": keras.Variable([1.0 + rank]),
        "complex": np.array([1j * rank]),
        "list": [rank, rank + 1],
        "nested": {"by_class": [np.array([rank, 4.0]), float(rank)], "name": f"rank {rank}"},
        "text": f"rank {rank}",
        "nothing": None,
        **({"val_classes": [2.0, np.ones(2)]} if rank else {}),
    }


def test_metrics_of_any_shape_are_averaged_and_the_rest_is_kept(on_ranks):
    for rank, logs in enumerate(on_ranks(2, at_epoch_end, logs_of_many_kinds)):
        expected = logs_of_many_kinds(rank)
        assert logs.keys() == {*expected, "val_classes"}
        assert (logs["number"], logs["float32"], logs["bfloat16"]) == (0.5, 0.5, 0.5)
        assert np.isnan(logs["bad"])
        np.testing.assert_array_equal(logs["array"], [[1.0, 0.5], [2.0, np.nan]])
        np.testing.assert_array_equal(logs["tensor"], [0.5, 1.0])
        np.testing.assert_array_equal(logs["variable"], [1.5])
        np.testing.assert_array_equal(logs["complex"], [0.5j])
        assert logs["list"] == [0.5, 1.5]
        np.testing.assert_array_equal(logs["nested"]["by_class"][0], [0.5, 4.0])
        assert logs["nested"]["by_class"][1] == 0.5
        assert logs["nested"]["name"] == logs["text"] == f"rank {rank}"
        assert logs["nothing"] is None
        assert logs["val_classes"][0] == 2.0
        np.testing.assert_array_equal(logs["val_classes"][1], [1.0, 1.0])


def logs_of_another_shape(rank):
    import numpy as np

    return {"loss": 1.0, "confusion": np.zeros((2 + rank, 2))}


def logs_of_another_structure(rank):
    return {"loss": 1.0, "confusion": [1.0, 2.0] if rank else [1.0]}


@pytest.mark.parametrize("logs", [logs_of_another_shape, logs_of_another_structure])
def test_a_metric_whose_shape_differs_is_named_on_all_ranks(on_ranks, logs):
    for message in on_ranks(2, at_epoch_end, logs):
        assert "'confusion'" in message and "by rank: {0: " in message
    assert "2, 2), 1: (3, 2)" in message or "[(), ()]" in message


def warmed_up(scaling):
    import keras
    import numpy as np

    import gsnr_tf

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    optimizer = gsnr_tf.GSNRSGD(0.5, gradient_accumulation_steps=2)
    model.compile(optimizer=optimizer, loss="mse")
    rates = []

    class See(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            rates.append(float(optimizer.learning_rate))

    warmup = gsnr_tf.callbacks.LearningRateWarmupCallback(0.1, 2, scaling=scaling)
    x = np.ones((12, 2), "float32")
    model.fit(x, x[:, :1], batch_size=2, verbose=0, callbacks=[warmup, See()])
    optimizer.learning_rate = 0.05
    model.fit(x, x[:, :1], batch_size=12, verbose=0, callbacks=[warmup, See()])
    return rates


def test_warmup_rises_by_updates_to_the_scaled_rate_and_then_lets_go(on_ranks):
    """2 ranks × 2 micro-batches: 4 times the batch."""
    for rates in on_ranks(2, warmed_up, "linear"):
        np.testing.assert_allclose(rates, [0.2] * 2 + [0.4] * 4 + [0.05], rtol=1e-6)
    for rates in on_ranks(2, warmed_up, "sqrt"):
        np.testing.assert_allclose(rates, [0.1] * 2 + [0.2] * 4 + [0.05], rtol=1e-6)
