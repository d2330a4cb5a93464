"""Dropout differs between ranks though all set the same seed, and is reproducible."""

import pytest

from gsnr_tf.callbacks.seeds import _separated


def masks(way, seed=7, fits=(2,), begin_with=None):
    """What two dropout layers let through in each step of some fits, and the seeds."""
    import keras
    import numpy as np

    import gsnr_tf

    keras.utils.set_random_seed(seed)
    seen = []

    class See(keras.layers.Layer):
        def call(self, inputs):
            # Not while Keras finds out shapes.
            if hasattr(inputs, "numpy"):
                seen.append((inputs.numpy() != 0).tolist())
            return inputs

    model = keras.Sequential(
        [
            keras.Input((16,)),
            keras.layers.Dropout(0.5),
            See(),
            keras.layers.Dropout(0.5, seed=3),
            See(),
            keras.layers.Dense(1),
        ]
    )
    x = np.ones((8, 16), "float32")
    seeds = [v for v in model.variables if "seed_generator_state" in v.path]
    for variable, value in zip(seeds, begin_with or []):
        variable.assign(value)
    if way == "engine":
        config = {
            "train_micro_batch_size_per_gpu": 4,
            "gradient_accumulation_steps": 1,
            "optimizer": {"type": "SGD", "params": {"lr": 0.1}},
            "steps_per_print": None,
        }
        data = (np.ones((8 * gsnr_tf.size(), 16), "float32"),)
        data = (*data, data[0][:, :1])
        engine = gsnr_tf.initialize(model, config, "mse", training_data=data, run_eagerly=True)
        for epochs in fits:
            engine.fit(epochs=epochs, verbose=0)
    else:
        optimizer = gsnr_tf.DistributedOptimizer(keras.optimizers.SGD(0.1))
        model.compile(optimizer=optimizer, loss="mse", run_eagerly=True)
        for epochs in fits:
            callback = gsnr_tf.callbacks.BroadcastGlobalVariablesCallback(
                root_rank=gsnr_tf.size() - 1
            )
            model.fit(x, x[:, :1], batch_size=4, epochs=epochs, verbose=0, callbacks=[callback])
    return seen, [v.numpy().tolist() for v in seeds]


@pytest.mark.parametrize("way", ["fit", "engine"])
def test_masks_differ_between_ranks_and_come_again(on_ranks, way):
    first, second = on_ranks(2, masks, way)
    again, second_again = on_ranks(2, masks, way)
    alone, _ = masks(way)
    assert len(alone) == 8
    assert first[0] == again[0] == alone
    assert second[0] == second_again[0]
    assert all(mine != yours for mine, yours in zip(first[0], second[0]))


def test_a_second_fit_goes_on_and_so_does_a_job_from_what_rank_0_saved(on_ranks):
    (first, _), (second, _) = on_ranks(2, masks, "fit", 7, (1, 1))
    together = [seen for seen, _ in on_ranks(2, masks, "fit", 7, (2,))]
    assert together == [first, second]
    half = [seen for seen, _ in on_ranks(2, masks, "fit", 7, (1,))]
    (_, saved), _ = on_ranks(2, masks, "fit", 7, (1,))
    # A run that began with another seed before it loaded these.
    resumed = [seen for seen, _ in on_ranks(2, masks, "fit", 5, (1,), saved)]
    assert [a + b for a, b in zip(half, resumed)] == together


def ranks_own():
    import gsnr_tf

    seeds = [[100 + gsnr_tf.rank(), 4], [200, gsnr_tf.rank()]]
    return masks("fit", 7, (0,), seeds)[1]


def test_seeds_that_differ_stay_and_counters_do_not_make_them_differ(on_ranks):
    first, second = on_ranks(2, ranks_own)
    assert first == [[100, 4], [200, 0]]
    assert second[0] == [101, 4]
    assert second[1][0] != 200 and second[1][1] == 1


def test_all_ranks_get_other_seeds():
    seeds = _separated([2**31 - 1] * 500)
    assert len(set(seeds)) == 500 and seeds[0] == 2**31 - 1
    assert _separated(seeds) == seeds
    # A rank that has come later, after others have moved up.
    mixed = _separated([5, _separated([5, 5, 5])[2], 5])
    assert len(set(mixed)) == 3 and mixed[0] == 5
