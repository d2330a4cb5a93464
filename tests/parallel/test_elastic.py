"""A commit keeps everything on every rank, and `sync` gives it back."""

import numpy as np
import pytest


def lost_and_found(sharding, policy, newcomer):
    """State at the commit, after more training, and after `sync`."""
    import keras
    import numpy as np

    import gsnr_tf

    rank = gsnr_tf.rank()
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(rank)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(40),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(1),
        ]
    )
    model.compile(optimizer=gsnr_tf.GSNRAdam(0.1, sharding=sharding), loss="mse")
    state = gsnr_tf.ElasticState(model)
    x = np.random.default_rng(rank).normal(size=(8, 4)).astype("float32")
    seeds = [v for v in model.variables if "seed_generator_state" in v.path]

    def now():
        state = [v for v in model.variables if "seed_generator_state" not in v.path]
        return [v.numpy() for v in [*state, *model.optimizer.full_state()]]

    state.sync()
    model.fit(x, x[:, :1], batch_size=4, epochs=2, verbose=0)
    state.epoch, state.batch = 2, 0
    state.commit()
    kept = now()
    model.fit(x, x[:, :1], batch_size=4, epochs=1, verbose=0)
    if rank == newcomer:
        # As if it had just come: nothing committed, and at the beginning.
        state._saved, state.epoch = None, 0
    later = now()
    state.restore()
    state.sync()
    found = now()
    keras.config.set_dtype_policy("float32")
    return kept, later, found, (state.epoch, state.batch), seeds[0].numpy().tolist()


@pytest.mark.parametrize(
    ("sharding", "policy", "newcomer"),
    [
        ("none", "float32", 1),
        ("slices", "mixed_float16", 1),
        ("none", "bfloat16", 1),
        # On a host that was there before, was lost, and is back.
        ("slices", "float32", 0),
    ],
)
def test_sync_restores_the_newest_commit_on_all(on_ranks, sharding, policy, newcomer):
    results = on_ranks(2, lost_and_found, sharding, policy, newcomer)
    committed = results[0][0]
    for kept, later, found, position, _ in results:
        assert position == (2, 0)
        assert any((a != b).any() for a, b in zip(kept, later))
        for value, expected in zip(found, committed):
            np.testing.assert_array_equal(value, expected)
    assert results[0][4] != results[1][4]  # seeds


def alone():
    """An elastic rank that trains before it has met the others."""
    import os

    import keras
    import numpy as np

    import gsnr_tf

    os.environ["HOROVOD_ELASTIC"] = "1"
    met = gsnr_tf.comm.horovod._met
    gsnr_tf.comm.horovod.set_together(False)
    try:
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(optimizer=gsnr_tf.GSNRSGD(0.1), loss="mse")
        x = np.ones((4, 2), "float32")
        # Rank 1 builds later than the others would wait for.
        model.optimizer.build(model.trainable_variables)
        model.fit(x, x[:, :1], verbose=0)
    except RuntimeError as error:
        return str(error)
    finally:
        del os.environ["HOROVOD_ELASTIC"]
        gsnr_tf.comm.horovod.set_together(met)


def test_an_elastic_rank_does_not_train_alone_in_silence(on_ranks):
    for said in on_ranks(2, alone):
        assert "have not met" in said and "@gsnr_tf.elastic_run" in said
