"""ConsistencyCheck names what has drifted, and nothing that may differ."""

import logging

import numpy as np
import pytest

import gsnr_tf


def trained(
    drift=None, optimizer="gsnr", every=None, on_difference="stop", policy=None, drift_at=4
):
    """Trains two epochs with everything that may differ between ranks, and a drift.

    Returns the error or `None`, what was logged, the weights and the batches made.
    """
    import keras
    import numpy as np

    import gsnr_tf

    rank = gsnr_tf.rank()
    keras.utils.set_random_seed(rank)

    class Counts(keras.layers.Layer):
        """Each rank's own: a number of rows."""

        def build(self, shape):
            self.rows = self.add_weight(
                shape=(), dtype="int32", trainable=False, initializer="zeros", name="rows"
            )

        def call(self, inputs):
            self.rows.assign_add(1 + rank)
            return inputs

    model = keras.Sequential(
        [
            keras.Input((2,)),
            Counts(),
            keras.layers.Dense(8, name="hidden", dtype=policy),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(1, name="out"),
        ]
    )
    made = {
        "gsnr": lambda: gsnr_tf.GSNRAdam(0.01),
        "whole": lambda: gsnr_tf.GSNRAdam(0.01, sharding="none"),
        # A window of 3 is not over when an epoch of 4 batches is.
        "window": lambda: gsnr_tf.GSNRAdam(0.01, gradient_accumulation_steps=3),
        "keras": lambda: gsnr_tf.DistributedOptimizer(keras.optimizers.Adam(0.01)),
        "scaled": lambda: gsnr_tf.LossScaleOptimizer(gsnr_tf.GSNRAdam(0.01)),
        "alone": lambda: keras.optimizers.SGD(0.01),
    }[optimizer]()
    model.compile(optimizer=made, loss="mse")
    seen = {"batches": 0}

    class Drift(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen["batches"] += 1
            if rank == 1 and seen["batches"] == drift_at and drift is not None:
                variable = drift(model)
                bits = np.array(variable.numpy())
                # The last bit of one number, or 1 more.
                flat = bits.reshape(-1)
                if flat.dtype.kind == "f":
                    flat[:1] = np.nextafter(flat[:1], np.inf)
                else:
                    flat[:1] += 1
                variable.assign(bits)

    logged = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())
    logging.getLogger("gsnr_tf").addHandler(handler)
    x = np.random.default_rng(rank).normal(size=(8, 2)).astype("float32")
    error = None
    try:
        model.fit(
            x,
            x[:, :1],
            batch_size=2,
            epochs=2,
            verbose=0,
            callbacks=[
                gsnr_tf.callbacks.BroadcastGlobalVariablesCallback(),
                Drift(),
                gsnr_tf.callbacks.AverageBatchStatistics(),
                gsnr_tf.callbacks.ConsistencyCheck(every, on_difference),
            ],
        )
    except gsnr_tf.callbacks.RanksDiffer as caught:
        error = str(caught)
    finally:
        logging.getLogger("gsnr_tf").removeHandler(handler)
    logged = [line for line in logged if "drifted" in line]
    weights = [w.numpy() for w in model.trainable_variables]
    return error, logged, weights, seen["batches"]


@pytest.mark.parametrize("optimizer", ["gsnr", "whole", "window", "keras", "scaled"])
def test_nothing_is_told_of_ranks_that_agree(on_ranks, optimizer):
    for error, logged, _, batches in on_ranks(2, trained, None, optimizer, 1):
        assert (error, logged, batches) == (None, [], 8)


def test_bfloat16_is_compared_too(on_ranks):
    for error, *_ in on_ranks(2, trained, None, "keras", 1, "stop", "bfloat16"):
        assert error is None


DRIFTS = {
    "hidden/kernel": lambda model: model.layers[1].kernel,
    "moment": lambda model: model.optimizer._momentums[0],
    "iteration": lambda model: model.optimizer._iterations,
    "learning_rate": lambda model: model.optimizer._learning_rate,
}


@pytest.mark.parametrize("name", DRIFTS)
def test_what_has_drifted_is_named_on_all_ranks_at_the_epochs_end(on_ranks, name):
    for error, _, _, batches in on_ranks(2, trained, DRIFTS[name], "keras"):
        assert name in error and "(rank 0 / rank 1)" in error
        assert batches == 4


def test_a_check_within_an_epoch_finds_it_sooner(on_ranks):
    arguments = DRIFTS["hidden/kernel"], "keras", 3, "stop", None, 3
    for error, _, _, batches in on_ranks(2, trained, *arguments):
        assert "hidden/kernel" in error
        assert batches == 3


def test_ranks_that_train_alone_are_found(on_ranks):
    for error, *_ in on_ranks(2, trained, None, "alone"):
        assert "6 of 10 variables differ" in error and "hidden/kernel" in error


def test_ranks_are_made_alike_where_that_is_asked_for(on_ranks):
    runs = on_ranks(2, trained, DRIFTS["hidden/kernel"], "keras", 2, "broadcast")
    (error, logged, weights, _), (other_error, other_logged, other_weights, _) = runs
    assert error is other_error is None
    assert len(logged) == 1 and "All have rank 0's now" in logged[0]
    assert not other_logged
    for mine, yours in zip(weights, other_weights):
        np.testing.assert_array_equal(mine, yours)


def majority():
    import keras

    import gsnr_tf
    from gsnr_tf import comm
    from gsnr_tf.callbacks.consistency import check_consistency

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="out")])
    model.compile(optimizer=gsnr_tf.DistributedOptimizer(keras.optimizers.SGD(0.1)))
    model.optimizer.build(model.trainable_variables)
    kernel = model.trainable_variables[0]
    kernel.assign([[1.0], [2.0 if gsnr_tf.rank() else -2.0]])
    communicator = comm.choose("auto", model.distribute_strategy)
    told = None
    try:
        check_consistency(model, communicator)
    except gsnr_tf.callbacks.RanksDiffer as error:
        told = str(error)
    check_consistency(model, communicator, "broadcast")
    check_consistency(model, communicator)
    return told, kernel.numpy().tolist()


def test_what_most_ranks_have_is_kept(on_ranks):
    for told, kernel in on_ranks(3, majority):
        assert "1 of 5 variables differ: " in told
        assert "out/kernel (rank 0 / rank 1, 2)." in told
        assert kernel == [[1.0], [2.0]]


def other_model():
    import keras

    import gsnr_tf
    from gsnr_tf import comm
    from gsnr_tf.callbacks.consistency import check_consistency

    with_bias = gsnr_tf.rank() == 0
    dense = keras.layers.Dense(1, use_bias=with_bias)
    model = keras.Sequential([keras.Input((2,)), dense])
    model.compile(optimizer=keras.optimizers.SGD(0.1))
    try:
        check_consistency(model, comm.choose("auto", model.distribute_strategy))
    except gsnr_tf.callbacks.RanksDiffer as error:
        return str(error)


def test_ranks_with_other_variables_are_told_so(on_ranks):
    first, second = on_ranks(2, other_model)
    assert first == second
    assert "Number of variables by rank: {0: 4, 1: 3}" in first


@pytest.mark.parametrize(
    "arguments, received", [({"every": 0}, "every=0"), ({"on_difference": "warn"}, "'warn'")]
)
def test_arguments_are_checked(arguments, received):
    with pytest.raises(ValueError, match=received):
        gsnr_tf.callbacks.ConsistencyCheck(**arguments)
