"""All ranks leave `fit` together, whichever of them wishes to."""

import pytest


def stopped(when, with_ours, ours_first):
    """Batches and epochs that this rank has begun, and who wanted to stop."""
    import keras
    import numpy as np

    import gsnr_tf
    from gsnr_tf.callbacks import BroadcastGlobalVariablesCallback, MetricAverageCallback

    class Stop(keras.callbacks.Callback):
        calls = epochs = 0

        def on_train_batch_end(self, batch, logs=None):
            self.calls += 1
            if when == "batch" and self.calls == 3 and gsnr_tf.rank() == 1:
                self.model.stop_training = True

        def on_epoch_end(self, epoch, logs=None):
            self.epochs += 1
            if when == "epoch" and epoch == 1 and gsnr_tf.rank() == 1:
                self.model.stop_training = True

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(optimizer=gsnr_tf.GSNRSGD(0.01), loss="mse")
    x = np.ones((32, 4), "float32")
    stop = Stop()
    ours = [BroadcastGlobalVariablesCallback(), MetricAverageCallback()] if with_ours else []
    callbacks = [*ours, stop] if ours_first else [stop, *ours]
    model.fit(x, x[:, :1], batch_size=4, epochs=4, verbose=0, callbacks=callbacks)
    first = stop.calls, stop.epochs
    # Nothing of it is left in the next `fit`.
    when = None
    model.fit(x, x[:, :1], batch_size=4, epochs=1, verbose=0, callbacks=callbacks)
    return first, stop.calls - first[0]


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize(
    "when, with_ours, expected",
    [
        # One more update carries the wish.
        ("batch", True, (4, 1)),
        ("batch", False, (4, 1)),
        ("epoch", True, (16, 2)),
        # Without a callback of ours, by the first update of the next epoch.
        ("epoch", False, (17, 3)),
    ],
)
def test_a_wish_of_one_rank_ends_fit_on_all(on_ranks, when, with_ours, expected, ours_first):
    for first, again in on_ranks(2, stopped, when, with_ours, ours_first):
        assert first == expected
        assert again == 8
