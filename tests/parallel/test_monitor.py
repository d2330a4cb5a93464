"""Watching on several ranks: the same weights, the same record, one writer."""

import numpy as np
import pytest

RULES = {
    "lamb": ("GSNRLamb", {"global_clipnorm": 1.0, "weight_decay": 0.01}),
    "lars": ("GSNRLars", {"weight_decay": 0.01}),
    "adam": ("GSNRAdam", {"clipvalue": 0.5, "estimator": "robust"}),
}
# Small ones share a bucket; with this bucket size one tensor travels alone.
SHAPES = [(), (7,), (90, 120), (120,), (4, 3, 8), (200,)]
BUCKET_BYTES = 4 * 5000


def watched(name, arguments, steps):
    """Weights with and without watching, and the record, whole and in slices."""
    import keras
    import numpy as np
    import tensorflow as tf

    import gsnr_tf

    rank, ranks = gsnr_tf.rank(), gsnr_tf.size()
    outcomes = {}
    for sharding in ("none", "slices"):
        for every in (None, 2):
            rng = np.random.default_rng(1)
            variables = [keras.Variable(rng.normal(size=s), dtype="float32") for s in SHAPES]
            optimizer = getattr(gsnr_tf, name)(
                0.1,
                sharding=sharding,
                gradient_accumulation_steps=steps,
                bucket_bytes=BUCKET_BYTES,
                **arguments,
            )
            optimizer.build(variables)
            if every:
                optimizer.watch(every)

            @tf.function
            def step(*gradients):
                optimizer.apply_gradients(zip(gradients, variables))

            for _ in range(3):
                common = [rng.normal(size=s) for s in SHAPES]
                for part in range(ranks * (steps or 1)):
                    sample = [c + rng.normal(size=c.shape) for c in common]
                    sample[2][4] = 0  # no sample knows anything
                    if part // (steps or 1) == rank:
                        step(*[tf.constant(g, "float32") for g in sample])
            weights = [v.numpy() for v in variables]
            record = tuple(optimizer.watched()) if every else None
            outcomes[sharding, every] = weights, record
    return outcomes


@pytest.mark.parametrize(
    "rule",
    [pytest.param(rule, marks=pytest.mark.slow) if rule != "lamb" else rule for rule in RULES],
)
def test_watching_changes_no_bit_and_sees_the_same_in_slices(on_ranks, rule):
    results = on_ranks(2, watched, *RULES[rule], 2)
    for outcomes in results:
        for sharding in ("none", "slices"):
            unwatched, _ = outcomes[sharding, None]
            weights, (update, samples, _, _, times) = outcomes[sharding, 2]
            for one, other in zip(weights, unwatched, strict=True):
                np.testing.assert_array_equal(one, other)
            assert (update, samples) == (2, 4)
            assert times == sorted(times) and times[0] > 0
        whole, sliced = (outcomes[way, 2][1][3] for way in ("none", "slices"))
        for one, other in zip(sliced, whole, strict=True):
            # An element on the edge of a bin may fall on either side of it, and of the
            # largest tensor each that is counted stands for three.
            np.testing.assert_allclose(one, other, rtol=2e-4, atol=3.01)
        np.testing.assert_allclose(sliced.field("phi"), whole.field("phi"), rtol=1e-5)
        np.testing.assert_allclose(sliced.field("u_sq"), whole.field("u_sq"), rtol=1e-4)
    first, second = (outcomes["slices", 2][1][3] for outcomes in results)
    for one, other in zip(first, second):
        np.testing.assert_array_equal(one, other)


def monitored(folder, sharding):
    """Fit with a monitor on every rank, each with a folder of its own rank's name."""
    import keras
    import numpy as np

    import gsnr_tf
    from gsnr_tf.callbacks import GSNRMonitor

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
    model.compile(gsnr_tf.GSNRLamb(0.1, sharding=sharding), loss="mse")
    x = np.random.default_rng(gsnr_tf.rank()).normal(size=(32, 6)).astype("float32")
    monitor = GSNRMonitor(f"{folder}/{gsnr_tf.rank()}", every=2)
    model.fit(x, x[:, :3], batch_size=8, epochs=2, verbose=0, callbacks=[monitor])


@pytest.mark.parametrize("sharding", ["none", "slices"])
def test_rank_0_alone_writes_of_all(on_ranks, tmp_path, sharding):
    from gsnr_tf.monitor.run import Run

    on_ranks(2, monitored, str(tmp_path), sharding)
    assert not (tmp_path / "1").exists()
    run = Run(tmp_path / "0")
    examples, updates = run.series("progress/updates")
    assert updates.tolist() == [2, 4, 6, 8]
    assert examples.tolist() == [32, 64, 96, 128]  # of both ranks
    assert run.last("batch/examples") == 16 and run.last("batch/samples") == 2
    assert run.info["workers"] == 2
