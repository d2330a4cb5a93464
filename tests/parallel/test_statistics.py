"""AverageBatchStatistics: BatchNorm's statistics of all ranks' data, once an epoch."""

import numpy as np
import pytest


def fit(rows_by_rank, momentum, epochs, evaluating, dtype="float32"):
    """Moving statistics after an epoch, before averaging and when validation ends."""
    import keras
    import numpy as np

    import gsnr_tf

    rank = gsnr_tf.rank()
    keras.utils.set_random_seed(0)
    norm = keras.layers.BatchNormalization(momentum=momentum, dtype=dtype)
    model = keras.Sequential([keras.Input((2,)), norm, keras.layers.Dense(1)])
    optimizer = gsnr_tf.DistributedOptimizer(keras.optimizers.SGD(0.0))
    model.compile(optimizer=optimizer, loss="mse")
    seen = {"before": [], "during": []}

    class See(keras.callbacks.Callback):
        def __init__(self, key):
            super().__init__()
            self.key = key

        def on_train_batch_end(self, batch, logs=None):
            if self.key == "before":
                seen["before"] = [v.numpy() for v in norm.non_trainable_variables]

        def on_test_batch_end(self, batch, logs=None):
            seen["during"] = [v.numpy() for v in norm.non_trainable_variables]

    x = np.asarray(rows_by_rank[rank], "float32")
    error = None
    try:
        model.fit(
            x,
            x[:, :1],
            batch_size=len(x),
            epochs=epochs,
            validation_data=(x, x[:, :1]) if rank in evaluating else None,
            callbacks=[See("before"), gsnr_tf.callbacks.AverageBatchStatistics(), See("")],
            verbose=0,
        )
    except FloatingPointError as caught:
        error = str(caught)
    after = [v.numpy() for v in norm.non_trainable_variables]
    return seen["before"], seen["during"], after, error


def data(shift=3.0):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(8, 2)).astype("float32") + shift * rank for rank in (0, 1)]


@pytest.mark.parametrize("evaluating", [(0, 1), (1,), ()], ids=str)
def test_statistics_are_those_of_all_examples_whoever_evaluates(on_ranks, evaluating):
    """Momentum 0: the statistics of the last batch. The ranks' means are 3 apart."""
    rows = data()
    results = on_ranks(2, fit, rows, 0.0, 1, evaluating)
    together = np.concatenate(rows)
    for rank, (before, during, after, _) in enumerate(results):
        np.testing.assert_allclose(before[0], rows[rank].mean(0), atol=1e-5)
        np.testing.assert_allclose(after[0], together.mean(0), atol=1e-5)
        np.testing.assert_allclose(after[1], together.var(0), rtol=1e-5)
        if rank in evaluating:
            np.testing.assert_array_equal(during, after)
    np.testing.assert_array_equal(results[0][2], results[1][2])


def test_alike_statistics_are_left_as_they_are(on_ranks):
    rows = data()[:1] * 2
    for before, _, after, _ in on_ranks(2, fit, rows, 0.9, 3, ()):
        np.testing.assert_array_equal(before, after)


def test_a_statistic_that_is_not_finite_is_named_and_stays_where_it_is(on_ranks):
    rows = data()
    rows[1][3, 1] = np.nan
    (before, _, after, error), (_, _, bad, same) = on_ranks(2, fit, rows, 0.9, 1, (0,))
    assert error == same
    assert "rank 1: " in error and "rank 0" not in error
    assert "moving_mean" in error and "moving_variance" in error
    np.testing.assert_array_equal(before, after)
    assert np.isfinite(after).all() and np.isnan(bad).any()


def untouched():
    """A frozen BatchNorm, a float64 statistic of a layer, and a count."""
    import keras

    import gsnr_tf
    from gsnr_tf import comm
    from gsnr_tf.callbacks.statistics import average_statistics

    rank = gsnr_tf.rank()

    class Own(keras.layers.Layer):
        def build(self, shape):
            options = {"shape": (), "trainable": False}
            self.exact = self.add_weight(dtype="float64", name="exact", **options)
            self.exact.assign(2.0**-40 + rank)
            self.count = self.add_weight(dtype="int32", name="count", **options)
            self.count.assign(rank)

        def call(self, inputs):
            return inputs

    frozen = keras.layers.BatchNormalization(trainable=False)
    model = keras.Sequential([keras.Input((2,)), frozen, Own()])
    frozen.moving_mean.assign([rank, rank])
    average_statistics(model, comm.choose("auto", model.distribute_strategy))
    own = model.layers[1]
    return frozen.moving_mean.numpy(), float(own.exact.numpy()), int(own.count)


def test_what_is_not_trained_or_no_statistic_stays_each_ranks_own(on_ranks):
    for rank, (frozen, exact, count) in enumerate(on_ranks(2, untouched)):
        np.testing.assert_array_equal(frozen, [rank, rank])
        assert exact == 0.5 + 2.0**-40
        assert count == rank
