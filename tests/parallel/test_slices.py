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
# One tensor has nine tenths of all elements, and travels alone; others share a bucket
# and have less than a block.
BUCKET_BYTES = 8000
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
            0.1,
            sharding=sharding,
            gradient_accumulation_steps=steps,
            bucket_bytes=BUCKET_BYTES,
            **arguments,
        )
        optimizer.build(variables)

        def apply(*gradients):
            gradients = [None if i == without_gradient else g for i, g in enumerate(gradients)]
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
        slots = [view.numpy() for views in optimizer._slots.values() for view in views]
        outcomes.append(
            {
                "weights": [v.numpy() for v in variables],
                "slots": slots,
                "shapes": {key: np.shape(value) for key, value in store.items()},
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


def slow_but_for_lamb():
    """All rules on two ranks, and on three the one that needs norms of whole variables: any
    numbers are tried by threads, in tests/unit/test_sharded_equals_replicated.py."""
    for rule in RULES:
        for ranks, steps in ((2, 2), (3, None), (4, 2)):
            more = ranks > 2 and (rule, ranks) != ("lamb", 3)
            yield pytest.param(rule, ranks, steps, marks=pytest.mark.slow if more else ())


@pytest.mark.parametrize("rule, ranks, steps", list(slow_but_for_lamb()))
def test_slices_equal_whole_variables(on_ranks, rule, ranks, steps):
    assert_alike(on_ranks(ranks, both_ways, *RULES[rule], steps, SHAPES, None, None))


@pytest.mark.parametrize("ranks, steps", [(2, 2), pytest.param(3, None, marks=pytest.mark.slow)])
def test_so_they_do_with_the_robust_estimator(on_ranks, ranks, steps):
    name, arguments = RULES["lamb"]
    arguments = {**arguments, "estimator": "robust"}
    assert_alike(on_ranks(ranks, both_ways, name, arguments, steps, SHAPES, None, None))


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


@pytest.mark.parametrize("ranks", [2])
def test_a_window_of_a_worker_may_count_as_one_sample(on_ranks, ranks):
    name, arguments = RULES["lamb"]
    arguments = {**arguments, "sample": "worker"}
    results = on_ranks(ranks, both_ways, name, arguments, 2, SHAPES, None, None)
    assert_alike(results)
    assert_alike(on_ranks(ranks, both_ways, name, arguments, 2, SHAPES, None, [3.0, 1.0]))
    report = results[0][1]
    assert "k=2 samples" in report
    # Nothing but one alltoall and one allgather.
    elements = sum(int(line[line.index("owns") + 1]) for line in table(report))
    assert sent(report) == [4 * elements] * 2


def table(report):
    return [line.replace(",", "").split() for line in report.splitlines()[1:]]


def sent(report):
    return [int(line[line.index("sends") + 1]) for line in table(report)]


def state(report):
    return [int(line[line.index("state") - 3]) for line in table(report)]


@pytest.mark.parametrize("ranks", [2, 4])
def test_slices_are_even_and_the_bytes_are_those_of_an_allreduce(on_ranks, ranks):
    (_, report), *_ = on_ranks(ranks, both_ways, *RULES["adam"], None, SHAPES, None, None)
    block, buckets = 3 * 128 * 4, 2
    assert max(state(report)) - min(state(report)) <= buckets * block
    whole = sum(state(report)) / 3
    np.testing.assert_allclose(
        sent(report), 2 * whole * (ranks - 1) / ranks, atol=ranks * buckets * block
    )


@pytest.mark.parametrize("ranks", [2])
@pytest.mark.parametrize("dtype, error", [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_gradients_may_travel_in_half_precision(on_ranks, ranks, dtype, error):
    """With γ = c = 1 the step is SGD's: linear in the rounded gradient."""
    name, arguments = "GSNRSGD", {"gamma": 1.0, "communication_dtype": dtype}
    results = on_ranks(ranks, rounded, name, arguments)
    for moved, samples, _ in results:
        off = np.abs(moved + samples.mean(axis=0))
        assert np.all(off <= error * np.abs(samples).mean(axis=0))
        assert np.any(off > error / 8 * np.abs(samples).mean(axis=0))
    # Weights are not rounded on their way.
    np.testing.assert_array_equal(results[0][0], results[1][0])
    full = on_ranks(ranks, rounded, name, {"gamma": 1.0, "sharding": "slices"})
    np.testing.assert_allclose(sent(results[0][2])[0] / sent(full[0][2])[0], 0.75, rtol=0.01)


def rounded(name, arguments):
    """What SGD moved, the samples of all ranks, and the report."""
    import keras
    import numpy as np
    import tensorflow as tf

    import gsnr_tf

    samples = np.random.default_rng(0).normal(size=(gsnr_tf.size(), 3000))
    variable = keras.Variable(np.zeros(3000), dtype="float32")
    optimizer = getattr(gsnr_tf, name)(1.0, **arguments)
    gradient = tf.constant(samples[gsnr_tf.rank()], "float32")
    optimizer.apply_gradients([(gradient, variable)])
    return variable.numpy(), samples, optimizer.sharding_report()


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


def saved_by_one(folder, ranks_that_save):
    """The state that the first of them saved between two updates, and all states."""
    import gsnr_tf

    model = saved_model("slices", False)
    saved = None
    for seed in range(4):
        update(model, seed)
        if seed == 1 and gsnr_tf.rank() in ranks_that_save:
            saved = full_state(model)
            model.save(f"{folder}/{gsnr_tf.rank()}.keras")
    return saved, full_state(model)


def test_one_rank_may_save_while_the_others_train_on(on_ranks, tmp_path):
    (expected, _), (same, _) = on_ranks(2, saved_by_one, str(tmp_path), [0, 1])
    alone = [on_ranks(2, saved_by_one, str(tmp_path), [rank]) for rank in (0, 1)]
    assert alone[0][1][0] is None and alone[1][0][0] is None
    for saved in (same, alone[0][0][0], alone[1][1][0]):
        for value, other in zip(saved, expected, strict=True):
            np.testing.assert_array_equal(value, other)
    last = [state for results in alone for _, state in results]
    for state in last[1:]:
        for value, other in zip(state, last[0], strict=True):
            np.testing.assert_array_equal(value, other)


def asked_at_the_wrong_time():
    import tensorflow as tf

    import gsnr_tf
    from gsnr_tf.comm import peers

    peers._BEHIND_SECONDS = 0.2
    model = saved_model("slices", False)
    update(model, 0)
    slots = model.optimizer._program.exchange.slots
    said = None
    if gsnr_tf.rank() == 0:
        slots._served.count.assign_add(1)  # as if it had gone on without the other
        try:
            full_state(model)
        except RuntimeError as error:
            said = str(error)
    # The other rank keeps its part until this one has asked.
    gsnr_tf.comm.horovod.load().allreduce(tf.constant(0.0), name="asked")
    return said


def test_a_rank_that_is_behind_is_named(on_ranks):
    message, _ = on_ranks(2, asked_at_the_wrong_time)
    assert "Rank 1 holds a part" in message
    assert "had 1 updates and loads, and the rank that asks 2" in message


def saved_model(sharding, float16):
    import keras

    import gsnr_tf

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("mixed_float16" if float16 else "float32")
    layers = [keras.Input((20,)), keras.layers.Dense(30), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile(optimizer=gsnr_tf.GSNRLamb(0.05, sharding=sharding), loss="mse")
    model.optimizer.build(model.trainable_variables)
    keras.config.set_dtype_policy("float32")
    return model


def update(model, seed):
    import numpy as np

    import gsnr_tf

    x = np.random.default_rng([seed, gsnr_tf.rank()]).normal(size=(4, 20))
    model.fit(x, x[:, :1], verbose=0)


def full_state(model):
    store = {}
    model.optimizer.save_own_variables(store)
    numbers = sorted(int(key) for key in store if key.isdigit())
    return [*model.get_weights(), *(store[str(number)] for number in numbers)]


def save(folder, sharding, float16):
    """The state that was saved, and that after one more update."""
    import tensorflow as tf

    import gsnr_tf

    model = saved_model(sharding, float16)
    for seed in range(2):
        update(model, seed)
    path = f"{folder}/{gsnr_tf.rank()}"
    model.save(f"{path}.keras")
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(f"{path}.tf")
    saved = full_state(model)
    update(model, 2)
    return saved, full_state(model)


def load(folder, sharding, float16):
    """Both kinds of checkpoint: the state that was read, and after one more update."""
    import keras
    import tensorflow as tf

    results = []
    path = f"{folder}/0"
    for way in ("keras", "checkpoint"):
        model = saved_model(sharding, float16)
        if way == "keras":
            keras.config.set_dtype_policy("mixed_float16" if float16 else "float32")
            saved = keras.models.load_model(f"{path}.keras")
            keras.config.set_dtype_policy("float32")
            model.set_weights(saved.get_weights())
            store = {str(i): v for i, v in enumerate(full_state(saved)[4:])}
            model.optimizer.load_own_variables(store)
        else:
            checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer)
            checkpoint.read(f"{path}.tf").assert_existing_objects_matched()
        read = full_state(model)
        update(model, 2)
        results.append((read, full_state(model)))
    return results


@pytest.mark.parametrize("float16", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_checkpoint_fits_any_number_of_ranks(on_ranks, tmp_path, float16):
    (saved, later), _ = on_ranks(2, save, str(tmp_path), "slices", float16)
    others = [(2, "slices")] if float16 else [(2, "none"), (3, "slices")]
    for ranks, sharding in others:
        for results in on_ranks(ranks, load, str(tmp_path), sharding, float16):
            for read, trained in results:
                for value, expected in zip(read, saved, strict=True):
                    np.testing.assert_array_equal(value, expected)
                if ranks == 2:  # and so the same samples as without interruption
                    for value, expected in zip(trained, later, strict=True):
                        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=2e-6)


def trained():
    """All that a checkpoint would hold after two updates."""
    model = saved_model("slices", False)
    for seed in range(2):
        update(model, seed)
    return full_state(model)


def loaded_by_one(saved, root):
    """The state of all ranks once training begins, rank 0 alone having loaded it."""
    import gsnr_tf

    model = saved_model("slices", False)
    if gsnr_tf.rank() == 0:
        model.set_weights(saved[:4])
        store = {str(index): value for index, value in enumerate(saved[4:])}
        model.optimizer.load_own_variables(store)
    callback = gsnr_tf.callbacks.BroadcastGlobalVariablesCallback(root_rank=root)
    callback.set_model(model)
    try:
        callback.on_train_begin()
    except ValueError as error:
        return str(error)
    return full_state(model)


def test_what_one_rank_has_loaded_all_have_when_training_begins(on_ranks):
    saved, _ = on_ranks(2, trained)
    for state in on_ranks(2, loaded_by_one, saved, 0):
        for value, expected in zip(state, saved, strict=True):
            np.testing.assert_array_equal(value, expected)


def test_the_state_of_a_rank_that_has_not_loaded_is_given_to_all(on_ranks):
    saved, _ = on_ranks(2, trained)
    for state in on_ranks(2, loaded_by_one, saved, 1):
        assert not any(np.any(value) for value in state[-14:-2])
