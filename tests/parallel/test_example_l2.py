"""The L2 of the MovieLens model is one, however the batch is divided."""

import numpy as np
import pytest

from tests.processes import ROOT

L2 = 0.25
EXAMPLES = 24  # an update


def one_update(folder, base, l2, steps):
    """Both tables, after one update by SGD at rate 1 with all EXAMPLES on all ranks.

    Ids are even only: no gradient of the data moves an odd row.
    """
    import sys
    from types import SimpleNamespace

    import keras
    import numpy as np
    import tensorflow as tf

    import gsnr_tf

    if folder not in sys.path:
        sys.path.insert(0, folder)
    from movielens_task import build_model

    keras.utils.set_random_seed(0)
    model = build_model(SimpleNamespace(users=8, movies=6, genres=3), width=4, l2=l2)
    if base:
        optimizer = keras.optimizers.SGD(1.0, gradient_accumulation_steps=steps)
        optimizer = gsnr_tf.DistributedOptimizer(optimizer)
    else:
        optimizer = gsnr_tf.GSNRSGD(1.0, gamma=1, ceiling=1, gradient_accumulation_steps=steps)
    rng = np.random.default_rng(0)
    features = {
        "user": 2 * rng.integers(0, 4, EXAMPLES).astype("int32"),
        "movie": 2 * rng.integers(0, 3, EXAMPLES).astype("int32"),
        "genres": rng.normal(size=(EXAMPLES, 3)).astype("float32"),
        "year": rng.normal(size=(EXAMPLES, 1)).astype("float32"),
    }
    clicks = rng.integers(0, 2, (EXAMPLES, 1)).astype("float32")
    batches = tf.data.Dataset.from_tensor_slices((features, clicks))
    batches = gsnr_tf.shard(batches.batch(EXAMPLES // (steps or 1)))
    model.compile(optimizer=optimizer, loss="binary_crossentropy")
    tables = [model.get_layer(f"{name}_embedding").embeddings for name in ("user", "movie")]
    start = [table.numpy() for table in tables]
    model.fit(batches, epochs=1, shuffle=False, verbose=0)
    return start, [table.numpy() for table in tables]


@pytest.mark.parametrize("base", [True, False], ids=["base", "gsnr"])
@pytest.mark.parametrize(
    ("ranks", "steps"),
    [
        (1, 2),
        pytest.param(1, 8, marks=pytest.mark.slow),
        (2, 2),
        pytest.param(2, 4, marks=pytest.mark.slow),
    ],
)
def test_an_update_adds_l2_times_the_table_to_its_gradient(on_ranks, ranks, steps, base):
    """Neither more micro-batches nor more ranks add it more often."""

    def run(l2):
        asked = one_update, str(ROOT / "keras_examples"), base, l2, steps
        return on_ranks(ranks, *asked) if ranks > 1 else [asked[0](*asked[1:])]

    for (start, with_l2), (same_start, without) in zip(run(L2), run(0.0), strict=True):
        for table in range(2):
            np.testing.assert_array_equal(start[table], same_start[table])
            np.testing.assert_allclose(
                with_l2[table], without[table] - L2 * start[table], rtol=0, atol=1e-6
            )
            # Rows without an example decay too; the others learn something besides.
            np.testing.assert_array_equal(without[table][1::2], start[table][1::2])
            assert (without[table][::2] != start[table][::2]).any()
