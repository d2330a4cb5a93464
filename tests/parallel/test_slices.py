"""Slices of the parameters on each rank: the same update, a k-th of the work."""

import numpy as np
import pytest

RULES = {
    "sgd": ("GSNRSGD", {"clipnorm": 1.0}),
    "momentum": ("GSNRSGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "adam": ("GSNRAdam", {"weight_decay": 0.01, "clipvalue": 0.5}),
    "lars": ("GSNRLars", {"weight_decay": 0.01, "use_ema": True}),
    "lamb": ("GSNRLamb", {"weight_decay": 0.01, "global_clipnorm": 1.0}),
}
# One tensor has nine tenths of all elements; others have less than a block.
SHAPES = [(), (7,), (90, 120), (120,), (4, 3, 8), (200,)]


def both_ways(name, arguments, steps, shapes, without_gradient, examples):
    """Weights and whole state after each way of sharding, from the same samples."""
    import keras
    import numpy as np
    import tensorflow as tf

    import gsnr_tf

    rank, ranks = gsnr_tf.rank(), gsnr_tf.size()
    outcomes, optimizers = [], []
    for sharding in ("none", "slices"):
        rng = np.random.default_rng(1)
        variables = [keras.Variable(rng.normal(size=s), dtype="float32") for s in shapes]
        optimizer = getattr(gsnr_tf, name)(
            0.1, sharding=sharding, gradient_accumulation_steps=steps, **arguments
        )
        optimizer.build(variables)

        def apply(*gradients):
            gradients = [
                None if i == without_gradient else g for i, g in enumerate(gradients)
            ]
            count = None if examples is None else examples[rank]
            optimizer.apply_gradients(zip(gradients, variables), examples=count)

        step = tf.function(apply)
        for _ in range(3):
            common = [rng.normal(size=s) for s in shapes]
            for part in range(ranks * (steps or 1)):
                sample = [c + rng.normal(size=c.shape) for c in common]
                sample[2][3] = common[2][3]  # all samples agree
                sample[2][4] = 0  # no sample knows anything
                if part // (steps or 1) == rank:
                    step(*[tf.constant(g, "float32") for g in sample])
        store = {}
        optimizer.save_own_variables(store)
        slots = [
            view.numpy() for views in optimizer._slots.values() for view in views
        ]
        outcomes.append(
            {
                "weights": [v.numpy() for v in variables],
                "slots": slots,
                "shapes": [np.shape(store[str(i)]) for i in range(len(store))],
                "gsnr": float(optimizer.gsnr),
                "traces": step.experimental_get_tracing_count(),
            }
        )
        optimizers.append(optimizer)
    return outcomes, optimizers[1].sharding_report()


def assert_alike(results):
    for (whole, sliced), _ in results:
        assert sliced["traces"] == 1
        assert sliced["shapes"] == whole["shapes"]
        np.testing.assert_allclose(sliced["gsnr"], whole["gsnr"], rtol=1e-5)
        for key in ("weights", "slots"):
            for value, expected in zip(sliced[key], whole[key], strict=True):
                np.testing.assert_allclose(value, expected, rtol=2e-5, atol=2e-6)
    for (_, sliced), _ in results[1:]:
        for value, first in zip(sliced["weights"], results[0][0][1]["weights"]):
            np.testing.assert_array_equal(value, first)


@pytest.mark.parametrize("ranks, steps", [(2, 2), (3, None), (4, 2)])
@pytest.mark.parametrize("rule", RULES)
def test_slices_equal_whole_variables(on_ranks, rule, ranks, steps):
    assert_alike(on_ranks(ranks, both_ways, *RULES[rule], steps, SHAPES, None, None))


@pytest.mark.parametrize("ranks", [4])
def test_a_rank_may_own_nothing(on_ranks, ranks):
    """Three blocks for four ranks."""
    results = on_ranks(ranks, tiny, [(3,), (), (2, 5)])
    for weights, report in results:
        for value, expected in zip(weights, results[0][0]):
            np.testing.assert_array_equal(value, expected)
        assert "0 bytes of state" in report


def tiny(shapes):
    import keras
    import numpy as np
    import tensorflow as tf

    import gsnr_tf

    variables = [keras.Variable(np.ones(s), dtype="float32") for s in shapes]
    optimizer = gsnr_tf.GSNRLamb(0.1, sharding="slices")
    rng = np.random.default_rng(gsnr_tf.rank())
    for _ in range(2):
        gradients = [tf.constant(rng.normal(size=s), "float32") for s in shapes]
        optimizer.apply_gradients(zip(gradients, variables))
    return [v.numpy() for v in variables], optimizer.sharding_report()


def test_a_variable_without_gradient_is_left_alone_with_its_state(on_ranks):
    name, arguments = RULES["lamb"]
    assert_alike(on_ranks(2, both_ways, name, arguments, None, SHAPES, 2, None))


def test_parts_weigh_by_their_examples(on_ranks):
    name, arguments = RULES["adam"]
    assert_alike(on_ranks(2, both_ways, name, arguments, None, SHAPES, None, [30.0, 10.0]))
    assert_alike(on_ranks(2, both_ways, name, arguments, 2, SHAPES, None, [3.0, 1.0]))


@pytest.mark.parametrize("ranks", [2, 4])
def test_slices_are_even_and_the_bytes_are_those_of_an_allreduce(on_ranks, ranks):
    (_, report), *_ = on_ranks(ranks, both_ways, *RULES["adam"], None, SHAPES, None, None)
    lines = [line.replace(",", "").split() for line in report.splitlines()]
    state = [int(line[line.index("bytes") - 1]) for line in lines]
    sent = [int(line[line.index("sends") + 1]) for line in lines]
    block = 3 * 128 * 4
    assert max(state) - min(state) <= block
    whole = sum(state) / 3
    np.testing.assert_allclose(sent, 2 * whole * (ranks - 1) / ranks, rtol=0.02)


def fit_with_an_overflow():
    import keras
    import numpy as np
    import tensorflow as tf

    import gsnr_tf

    rank = gsnr_tf.rank()
    keras.config.set_dtype_policy("mixed_float16")
    keras.utils.set_random_seed(rank)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    optimizer = gsnr_tf.GSNRAdam(0.1, sharding="slices")
    model.compile(optimizer=optimizer, loss="mse")
    x = np.random.default_rng(rank).normal(size=(3, 4, 2)).astype("float32") * 0.1
    if rank == 1:
        x[1, 0, 0] = np.inf
    history = []
    for batch in x:
        model.fit(tf.data.Dataset.from_tensors((batch, batch[:, :1])), verbose=0)
        slots = [v.numpy() for views in optimizer._slots.values() for v in views]
        history.append([*model.get_weights(), *slots])
    keras.config.set_dtype_policy("float32")
    return history, int(optimizer.skipped_steps), float(model.optimizer.dynamic_scale)


def test_an_overflow_on_one_rank_is_skipped_by_all(on_ranks):
    results = on_ranks(2, fit_with_an_overflow)
    for (before, after, later), skipped, scale in results:
        assert (skipped, scale) == (1, 2.0**14)
        for value, same, moved in zip(before, after, later):
            np.testing.assert_array_equal(value, same)
            assert np.isfinite(moved).all()
    for value, other in zip(results[0][0][-1], results[1][0][-1]):
        np.testing.assert_array_equal(value, other)


def save_or_resume(folder, save, float16):
    """Two updates and a checkpoint, or one more update from it."""
    import keras
    import numpy as np
    import tensorflow as tf

    import gsnr_tf

    rank, ranks = gsnr_tf.rank(), gsnr_tf.size()
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("mixed_float16" if float16 else "float32")
    sharding = "slices" if ranks > 1 else "none"
    steps = 6 // ranks
    model = keras.Sequential([keras.Input((20,)), keras.layers.Dense(30), keras.layers.Dense(1)])
    optimizer = gsnr_tf.GSNRLamb(
        0.05, sharding=sharding, gradient_accumulation_steps=steps if steps > 1 else None
    )
    model.compile(optimizer=optimizer, loss="mse")
    model.optimizer.build(model.trainable_variables)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
    path = f"{folder}/rank{rank if save else 0}"
    updates = range(2) if save else range(2, 3)
    results = []
    for way in ("keras", "checkpoint") if not save else ("both",):
        if way == "keras":
            store = dict(np.load(f"{path}.npz"))
            model.optimizer.load_own_variables(store)
            model.load_weights(f"{path}.weights.h5")
        if way == "checkpoint":
            checkpoint.read(f"{path}.tf").assert_consumed()
        for update in updates:
            x = np.random.default_rng(update).normal(size=(6, 4, 20)).astype("float32")
            for batch in x[rank * steps : (rank + 1) * steps]:
                data = tf.data.Dataset.from_tensors((batch, batch[:, :1]))
                model.fit(data, verbose=0)
        results.append(model.get_weights())
    if save:
        model.save_weights(f"{path}.weights.h5")
        store = {}
        model.optimizer.save_own_variables(store)
        np.savez(f"{path}.npz", **store)
        checkpoint.write(f"{path}.tf")
    keras.config.set_dtype_policy("float32")
    return results


@pytest.mark.parametrize("float16", [False, True])
def test_checkpoints_know_nothing_of_the_number_of_ranks(on_ranks, tmp_path, float16):
    on_ranks(2, save_or_resume, str(tmp_path), True, float16)
    folder = str(tmp_path)
    runs = [on_ranks(ranks, save_or_resume, folder, False, float16) for ranks in (2, 3)]
    runs.append([save_or_resume(folder, False, float16)])
    expected = runs[0][0][0]
    for by_keras, by_checkpoint in (results for run in runs for results in run):
        for weights in (by_keras, by_checkpoint):
            for value, same in zip(weights, expected):
                np.testing.assert_allclose(value, same, rtol=2e-5, atol=2e-6)
