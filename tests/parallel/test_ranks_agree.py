"""What ranks must have alike, and what happens where they do not."""

import functools
import operator

import numpy as np
import pytest


def heads(name, arguments):
    """A shared trunk and a head for each rank: how far weights are from the reference."""
    import keras
    import numpy as np
    import tensorflow as tf

    import gsnr_tf

    keras.utils.set_random_seed(0)
    trunk = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)])
    both = [keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]) for _ in range(3)]
    variables = functools.reduce(
        operator.iadd, (part.trainable_variables for part in (trunk, *both)), []
    )
    start = [v.numpy() for v in variables]
    xs = [np.random.default_rng(r).normal(size=(8, 6)).astype("float32") for r in range(2)]

    def gradients(rank):
        with tf.GradientTape() as tape:
            found = both[rank](trunk(xs[rank])) - xs[rank][:, :1]
            loss = tf.reduce_mean(tf.square(found))
        return tape.gradient(loss, variables)

    if name == "keras":
        optimizer = gsnr_tf.DistributedOptimizer(keras.optimizers.SGD(0.1, weight_decay=0.1))
    else:
        optimizer = getattr(gsnr_tf, name)(0.1, gamma=1.0, weight_decay=0.1, **arguments)
    optimizer.build(variables)

    @tf.function
    def step():
        optimizer.apply_gradients(zip(gradients(gsnr_tf.rank()), variables))

    calls = 2 * (arguments.get("gradient_accumulation_steps") or 1)
    for _ in range(calls):
        step()
    found = [v.numpy() for v in variables]
    if name not in ("keras", "GSNRSGD"):
        return found
    for v, s in zip(variables, start):
        v.assign(s)
    for _ in range(2):
        for v, *gs in zip(variables, gradients(0), gradients(1)):
            given = [g for g in gs if g is not None]
            if given:  # Nobody touches the last head: it does not even decay.
                v.assign(v * (1 - 0.1 * 0.1) - 0.1 * sum(given) / 2)
    return max(float(np.abs(f - v.numpy()).max()) for f, v in zip(found, variables))


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("GSNRSGD", {}),
        ("GSNRSGD", {"sharding": "none"}),
        ("GSNRSGD", {"gradient_accumulation_steps": 2}),
        ("keras", {}),
    ],
)
def test_a_gradient_that_some_ranks_lack_counts_as_zero(on_ranks, name, arguments):
    for off in on_ranks(2, heads, name, arguments):
        assert off < 1e-6


@pytest.mark.parametrize("sharding", ["none", "slices"])
def test_what_nobody_has_a_gradient_for_is_left_alone(on_ranks, sharding):
    first, second = on_ranks(2, heads, "GSNRLamb", {"sharding": sharding})
    for one, other in zip(first, second):
        np.testing.assert_array_equal(one, other)


def told(make, data_seed=0):
    """The error that training raises on this rank, or `None`."""
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    model = make()
    x = np.random.default_rng(data_seed).normal(size=(16, 4)).astype("float32")
    try:
        model.fit(x, x[:, :1], epochs=2, verbose=0)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def differing(what):
    import keras

    import gsnr_tf

    second = gsnr_tf.rank() == 1

    def make():
        names = ["b", "a"] if second and what == "order" else ["a", "b"]
        width = 5 if second and what == "shape" else 4
        layers = [keras.layers.Dense(width, name=name) for name in names]
        rule = gsnr_tf.GSNRAdam if second and what == "class" else gsnr_tf.GSNRLamb
        optimizer = rule(
            0.01,
            gamma=0.5 if second and what == "gamma" else 0.1,
            clipnorm=1.0 if second and what == "clipnorm" else None,
            gradient_accumulation_steps=4 if second and what == "steps" else 2,
        )
        model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(1)])
        model.compile(optimizer=optimizer, loss="mse")
        return model

    return told(make)


@pytest.mark.parametrize(
    "what, named",
    [
        ("gamma", "gamma is 0.1 on rank 0 and 0.5 on rank 1"),
        ("order", "a/kernel (4, 4) float32 on rank 0 and "),
        ("shape", "(4, 4) float32 on rank 0"),
        ("class", "GSNRLamb on rank 0 and"),
        ("clipnorm", "clipnorm is None on rank 0 and 1.0 on rank 1"),
        ("steps", "gradient_accumulation_steps is 2 on rank 0 and 4 on rank 1"),
    ],
)
def test_what_is_fixed_and_differs_is_an_error_on_all_ranks(on_ranks, what, named):
    for message in on_ranks(2, differing, what):
        assert message.startswith("RanksDiffer") and named in message


def counted_differently():
    import keras

    import gsnr_tf

    if gsnr_tf.rank() == 0:
        # Names go on counting: dense_2, gsnr_lamb_1.
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(2), keras.layers.Dense(2)])
        gsnr_tf.GSNRLamb(0.1)

    def make():
        layers = [keras.layers.Dense(3), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((4,)), *layers])
        model.compile(optimizer=gsnr_tf.GSNRLamb(0.01), loss="mse")
        return model

    return told(make)


def test_names_that_a_process_counts_for_itself_may_differ(on_ranks):
    assert on_ranks(2, counted_differently) == [None, None]


def two_nets(swapped, alike=False):
    """Two optimizers, the second from the config of the first."""
    import keras
    import numpy as np
    import tensorflow as tf

    import gsnr_tf

    keras.utils.set_random_seed(0)
    named = [{"units": 2, "name": "net_2"}, {"units": 3, "name": "net_3"}]
    nets = [
        keras.Sequential([keras.Input((4,)), keras.layers.Dense(**arguments)])
        for arguments in ([{"units": 2}] * 2 if alike else named)
    ]
    first = gsnr_tf.GSNRSGD(0.1, gamma=1.0)
    optimizers = [first, gsnr_tf.GSNRSGD.from_config(first.get_config())]
    x = np.random.default_rng(gsnr_tf.rank()).normal(size=(8, 4)).astype("float32")

    def step(net, optimizer):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(net(x)))
        weights = net.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights))

    order = list(zip(nets, optimizers))
    if swapped and gsnr_tf.rank() == 1:
        order.reverse()
    try:
        for _ in range(2):
            for net, optimizer in order:
                tf.function(step)(net, optimizer)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return [w.tolist() for net in nets for w in net.get_weights()]


def test_two_optimizers_do_not_get_into_each_others_way(on_ranks):
    first, second = on_ranks(2, two_nets, False)
    assert first == second


def test_two_optimizers_in_another_order_are_found_out(on_ranks):
    for message in on_ranks(2, two_nets, True):
        assert "net_2/kernel" in message and "in the same order" in message


def test_two_optimizers_of_nets_alike_are_found_out_as_well(on_ranks):
    for message in on_ranks(2, two_nets, True, True):
        assert "in the order they were made" in message
    first, second = on_ranks(2, two_nets, False, True)
    assert first == second


def changed(what, sharding):
    """Rank 1 changes something between updates."""
    import keras
    import numpy as np

    import gsnr_tf

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8, name="a"), keras.layers.Dense(1, name="b")]
    )
    if sharding:
        optimizer = gsnr_tf.GSNRAdam(0.01, gradient_accumulation_steps=2, sharding=sharding)
    else:
        optimizer = gsnr_tf.DistributedOptimizer(keras.optimizers.Adam(0.01))
    model.compile(optimizer=optimizer, loss="mse")
    x = np.random.default_rng(gsnr_tf.rank()).normal(size=(16, 4)).astype("float32")
    model.fit(x, x[:, :1], batch_size=4, verbose=0)
    if gsnr_tf.rank() == 1:
        if what == "rate":
            model.optimizer.learning_rate = 0.5
        if what == "weights":
            model.get_layer("b").kernel.assign(model.get_layer("b").kernel + 0.25)
        if what == "state":
            store = {}
            optimizer.save_own_variables(store)
    if what == "state":
        # All ranks wait until rank 1 has read the slots of rank 0.
        gsnr_tf.comm.choose("auto", model.distribute_strategy).gather(0)
        if gsnr_tf.rank() == 1:
            optimizer.load_own_variables(store)
    before = model.get_weights()
    try:
        model.fit(x, x[:, :1], batch_size=4, verbose=0)
    except Exception as error:
        unchanged = all(np.array_equal(*pair) for pair in zip(before, model.get_weights()))
        return f"{unchanged} {error}"
    return "no error"


@pytest.mark.parametrize("sharding", [pytest.param("none", marks=pytest.mark.slow), "slices", None])
@pytest.mark.parametrize(
    "what, named",
    [
        ("rate", "different learning rates: rank 1 has 0.5, rank 0 has 0.01"),
        ("weights", "b/kernel on rank 1"),
    ],
)
def test_what_changes_on_one_rank_is_an_error_on_all(on_ranks, what, named, sharding):
    for message in on_ranks(2, changed, what, sharding):
        # The update was not made.
        assert message.startswith("True ") and named in message


def test_state_that_one_rank_loads_alone_is_an_error_on_all(on_ranks):
    for message in on_ranks(2, changed, "state", "slices"):
        assert "different optimizer states" in message and "rank 1" in message


def loaded_alone(folder):
    """Trains, saves on rank 0, then loads: there alone, and with all."""
    import keras
    import numpy as np

    import gsnr_tf
    from gsnr_tf.callbacks import BroadcastGlobalVariablesCallback

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(1)])
    model.compile(optimizer=gsnr_tf.GSNRLamb(0.01, gradient_accumulation_steps=2), loss="mse")
    x = np.random.default_rng(gsnr_tf.rank()).normal(size=(16, 4)).astype("float32")
    model.fit(x, x[:, :1], batch_size=4, verbose=0)
    path = f"{folder}/model.keras"
    if gsnr_tf.rank() == 0:
        model.save(path)
        model = keras.models.load_model(path)
        model.evaluate(x, x[:, :1], verbose=0)
        model.save(f"{folder}/again.keras")
    state = [v.numpy() for v in model.optimizer.full_state()]
    broadcast = BroadcastGlobalVariablesCallback()
    if gsnr_tf.rank() == 1:
        # As a rank does that has nothing yet.
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(1)])
        model.compile(optimizer=gsnr_tf.GSNRLamb(0.01, gradient_accumulation_steps=2), loss="mse")
    model.fit(x, x[:, :1], batch_size=4, verbose=0, callbacks=[broadcast])
    return state, model.get_weights(), int(model.optimizer.iterations)


def test_a_rank_builds_loads_and_saves_alone(on_ranks, tmp_path):
    (_, first, updates), (_, second, others) = on_ranks(2, loaded_alone, str(tmp_path))
    assert (tmp_path / "again.keras").exists()
    assert updates == others == 4
    for one, other in zip(first, second):
        np.testing.assert_array_equal(one, other)


def test_a_model_of_two_ranks_loads_in_one_process(on_ranks, tmp_path):
    import keras

    (state, _, _), _ = on_ranks(2, loaded_alone, str(tmp_path))
    # Not in a job: this process is no rank, and has one sample only.
    model = keras.models.load_model(tmp_path / "model.keras")
    found = [v.numpy() for v in model.optimizer.full_state()]
    assert len(found) == len(state)
    for one, other in zip(found, state):
        np.testing.assert_array_equal(one, other)
