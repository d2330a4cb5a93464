"""What Keras promises of its optimizers holds for these as well."""

import copy
import itertools
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.problems import (
    OPTIMIZERS,
    PROBLEMS,
    VARIANTS,
    assert_close,
    assert_same,
    feed,
    values,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*samples an update")
every = pytest.mark.parametrize("row", OPTIMIZERS.values(), ids=list(OPTIMIZERS))
PROBLEM = PROBLEMS["model"]
K = 4

rng = np.random.default_rng(0)
X = rng.normal(size=(64, 6)).astype("float32")
Y = np.tanh(X[:, :2].sum(axis=1, keepdims=True))


def small_model(optimizer=None, **compile_arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(5, activation="tanh"), keras.layers.Dense(1)]
    )
    if optimizer:
        model.compile(optimizer, "mse", **compile_arguments)
    return model


def train(model, first, last):
    """Batches `first` to `last` of an endless repetition of the data."""
    for batch in range(first, last):
        rows = slice(8 * (batch % 8), 8 * (batch % 8) + 8)
        model.train_on_batch(X[rows], Y[rows])


def state(model):
    return values(model.variables + model.optimizer.variables)


def run(optimizer, updates=None, problem=PROBLEM, **feeding):
    """The variables after the problem's updates."""
    variables = problem.variables()
    for samples in problem.samples[:updates]:
        feed(optimizer, variables, samples, **feeding)
    return values(variables)


def expected(row, updates=None, counts=None, **arguments):
    rule, weights = row.make_reference(**arguments), PROBLEM.weights
    for samples in PROBLEM.samples[:updates]:
        weights = rule.step(weights, samples, counts, PROBLEM.names)
    return weights


# ---- Keras' own six ---------------------------------------------------------------


@pytest.mark.parametrize("row", VARIANTS)
def test_config_round_trip(row):
    more = {"clipnorm": 2.0, "use_ema": True, "gradient_accumulation_steps": 3}
    optimizer = VARIANTS[row].make(**more, communicator="local")
    config = optimizer.get_config()
    again = type(optimizer).from_config(copy.deepcopy(config))
    assert again.get_config() == config
    by_name = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert type(by_name) is type(optimizer)
    assert by_name.get_config() == config
    assert config["communicator"] == "local"
    for name, value in {**VARIANTS[row].arguments, **more}.items():
        assert config[name] == value


@every
def test_single_step(row):
    optimizer = row.make(gradient_accumulation_steps=K)
    assert_close(run(optimizer, updates=1), expected(row, updates=1), 2e-5, 2e-6)
    assert int(optimizer.iterations) == 1


@every
def test_weight_decay_with_exclusions(row):
    names = ["kernel", "bias", "gain"]
    weights = [keras.Variable(np.full((2, 2), 2.0), name=name) for name in names]
    by_pattern = row.make(
        weight_decay=0.25,
        exclude_from_weight_decay=["bias"],
        gradient_accumulation_steps=8,
    )
    by_pattern.exclude_from_weight_decay(var_list=[weights[2]])
    for _ in range(8):
        by_pattern.apply_gradients([(tf.zeros((2, 2)), w) for w in weights])
    kernel, bias, gain = values(weights)
    assert np.all(kernel < 2)
    assert np.all(bias == 2) and np.all(gain == 2)


@every
def test_exclusions_are_searched_in_the_path(row):
    """Keras looks at the name alone, where the layer does not appear."""
    with keras.name_scope("block"):
        first, second = [keras.Variable(np.full((2, 2), 2.0), name="gamma") for _ in "ab"]
    with keras.name_scope("norm"):
        third = keras.Variable(np.full((2, 2), 2.0), name="gamma")
    optimizer = row.make(
        weight_decay=0.25,
        exclude_from_weight_decay=["^norm/"],
        gradient_accumulation_steps=8,
    )
    for _ in range(8):
        optimizer.apply_gradients([(tf.zeros((2, 2)), w) for w in (first, second, third)])
    first, second, third = values([first, second, third])
    assert np.all(first < 2) and np.all(second < 2)
    assert np.all(third == 2)


@pytest.mark.parametrize("row", VARIANTS)
def test_golden_values(row):
    optimizer = VARIANTS[row].make(gradient_accumulation_steps=K)
    assert_close(run(optimizer), expected(VARIANTS[row]), 2e-5, 4e-6)


@every
def test_clip_norm(row):
    optimizer = row.make(clipnorm=1.0)
    clipped = optimizer._clip_gradients([tf.constant([100.0, 100.0])])
    np.testing.assert_allclose(clipped[0], [2**0.5 / 2] * 2, rtol=1e-6)


@every
def test_clip_value(row):
    optimizer = row.make(clipvalue=1.0)
    clipped = optimizer._clip_gradients([tf.constant([100.0, -100.0])])
    np.testing.assert_array_equal(clipped[0], [1.0, -1.0])


# ---- training ---------------------------------------------------------------------


@every
def test_fit_decreases_the_loss_and_traces_once(row):
    model = small_model(row.make(gradient_accumulation_steps=2))
    traces = []
    step = model.train_step
    model.train_step = lambda data: traces.append(0) or step(data)
    losses = model.fit(X, Y, batch_size=8, epochs=6, shuffle=False, verbose=0).history["loss"]
    # Keras traces once to create variables and once more to train.
    assert len(traces) <= 2
    assert losses[-1] < losses[0]
    assert int(model.optimizer.iterations) == 6 * 8 / 2


@every
def test_a_loop_of_ones_own_equals_train_on_batch_and_traces_once(row):
    compiled = small_model(row.make(gradient_accumulation_steps=2), run_eagerly=True)
    train(compiled, 0, 6)
    model, optimizer, traces = small_model(), row.make(gradient_accumulation_steps=2), []
    optimizer.build(model.trainable_variables)

    @tf.function
    def step(x, y):
        traces.append(0)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x) - y))
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))

    for batch in range(6):
        step(tf.constant(X[8 * batch : 8 * batch + 8]), tf.constant(Y[8 * batch : 8 * batch + 8]))
    assert len(traces) == 1
    assert_close(values(model.variables), values(compiled.variables), 1e-4, 1e-5)


@every
def test_learning_rate(row):
    # Schedules count updates, from 0.
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.25, 0.125])
    scheduled = run(row.make(learning_rate=schedule, gradient_accumulation_steps=K), 2)
    rates = iter([0.25, 0.125])
    called = run(row.make(learning_rate=lambda: next(rates), gradient_accumulation_steps=K), 2)
    optimizer = row.make(learning_rate=0.25, gradient_accumulation_steps=K)
    rule = row.make_reference(learning_rate=0.25)
    variables, weights = PROBLEM.variables(), PROBLEM.weights
    for rate, samples in zip([0.25, 0.125], PROBLEM.samples):
        optimizer.learning_rate = rule.learning_rate = rate
        feed(optimizer, variables, samples)
        weights = rule.step(weights, samples)
    assert_close(values(variables), weights, 2e-5, 4e-6)
    assert_same(scheduled, values(variables))
    assert_same(called, values(variables))


# ---- going on ---------------------------------------------------------------------


@every
def test_a_saved_model_goes_on_as_if_nothing_had_been(row, tmp_path):
    def make():
        return row.make(gradient_accumulation_steps=K, use_ema=True)

    model = small_model(make(), run_eagerly=True)
    train(model, 0, 4)
    model.save(tmp_path / "window.keras")
    train(model, 4, 6)
    model.save(tmp_path / "middle.keras")
    pickled = pickle.dumps(model)
    tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(str(tmp_path / "c"))
    train(model, 6, 13)
    final = state(model)

    def restored(build):
        other = small_model(make(), run_eagerly=True)
        other.layers[0].kernel.assign(other.layers[0].kernel + 1)
        if build:
            other.optimizer.build(other.trainable_variables)
        checkpoint = tf.train.Checkpoint(model=other, optimizer=other.optimizer)
        checkpoint.read(str(tmp_path / "c"))
        return other

    others = {
        ".keras": (4, keras.models.load_model(tmp_path / "window.keras")),
        ".keras in a window": (6, keras.models.load_model(tmp_path / "middle.keras")),
        "pickle": (6, pickle.loads(pickled)),
        "checkpoint": (6, restored(build=True)),
        "checkpoint before build": (6, restored(build=False)),
    }
    for way, (batch, other) in others.items():
        other.run_eagerly = True
        train(other, batch, 13)
        assert_same(state(other), final, way)


@every
def test_pickle_and_copy_keep_the_config(row):
    optimizer = row.make(gamma=0.5, gradient_accumulation_steps=8)
    for again in (
        pickle.loads(pickle.dumps(optimizer)),
        copy.copy(optimizer),
        copy.deepcopy(optimizer),
    ):
        assert type(again) is type(optimizer)
        assert again.get_config() == optimizer.get_config()


# ---- averages, counters, constraints ----------------------------------------------


@every
@pytest.mark.parametrize("frequency", [None, 2])
def test_averages_of_the_weights_follow_updates(row, frequency):
    momentum, rule = 0.75, row.make_reference()
    weights, averages = PROBLEM.weights, None
    for number, samples in enumerate(PROBLEM.samples):
        weights = rule.step(weights, samples)
        averages = averages or weights
        averages = [momentum * a + (1 - momentum) * w for a, w in zip(averages, weights)]
        if frequency and (number + 1) % frequency == 0:
            weights = averages
    optimizer = row.make(
        gradient_accumulation_steps=K,
        use_ema=True,
        ema_momentum=momentum,
        ema_overwrite_frequency=frequency,
    )
    variables = PROBLEM.variables()
    for samples in PROBLEM.samples:
        feed(optimizer, variables, samples)
    assert_close(values(variables), weights, 2e-5, 4e-6)
    assert_close(values(optimizer._model_variables_moving_average), averages, 2e-5, 4e-6)
    optimizer.finalize_variable_values(variables)
    assert_same(values(variables), values(optimizer._model_variables_moving_average))


@every
def test_iterations_count_updates(row):
    optimizer, weights = row.make(gradient_accumulation_steps=3), keras.Variable([1.0])
    counts, before = [], 1.0
    for call in range(7):
        optimizer.apply_gradients([(tf.constant([1.0 + call]), weights)])
        counts.append(int(optimizer.iterations))
        moved, before = float(weights[0]) != before, float(weights[0])
        assert moved == (call in (2, 5))
    assert counts == [0, 0, 1, 1, 1, 2, 2]
    assert int(optimizer.skipped_steps) == 0


@every
def test_constraint(row):
    weights = keras.Variable([[1.0, 2.0]], name="kernel")
    weights.constraint = keras.constraints.NonNeg()
    optimizer = row.make(learning_rate=64.0, gradient_accumulation_steps=2)
    for sample in ([[1.0, -1.0]], [[2.0, -2.0]]):
        optimizer.apply_gradients([(tf.constant(sample), weights)])
    assert float(weights[0, 0]) == 0 and float(weights[0, 1]) > 2


@every
def test_loss_scale_factor(row):
    optimizer = row.make(gradient_accumulation_steps=K, loss_scale_factor=8.0)
    assert float(optimizer.scale_loss(2.0)) == 16
    scaled = PROBLEM._replace(
        samples=[[[8 * g for g in sample] for sample in u] for u in PROBLEM.samples]
    )
    assert_same(run(optimizer, problem=scaled), run(row.make(gradient_accumulation_steps=K)))


# ---- gradients of every kind ------------------------------------------------------


@every
def test_a_variable_without_gradient_is_left_alone(row):
    optimizer = row.make(gradient_accumulation_steps=2, weight_decay=0.1)
    variables = PROBLEM.variables()
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        for sample in PROBLEM.samples[0][:2]:
            gradients = [tf.constant(sample[0]), None, tf.constant(sample[2])]
            optimizer.apply_gradients(zip(gradients, variables))
    kernel, bias, gain = values(variables)
    np.testing.assert_array_equal(bias, PROBLEM.weights[1])
    assert np.all(kernel != PROBLEM.weights[0])
    assert np.all(gain != PROBLEM.weights[2])


@every
def test_sparse_gradients_equal_dense_ones(row):
    tokens = tf.constant([[[1, 1, 3]], [[3, 0, 1]]])

    def trained(sparse):
        keras.utils.set_random_seed(0)
        embedding = keras.layers.Embedding(5, 4)
        embedding.build()
        variable = embedding.embeddings
        optimizer = row.make(gradient_accumulation_steps=2, clipnorm=0.5)
        for sample in itertools.chain(tokens, tokens):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(tf.square(embedding(sample)) * 3.0)
            gradient = tape.gradient(loss, variable)
            assert isinstance(gradient, tf.IndexedSlices)
            gradient = gradient if sparse else tf.convert_to_tensor(gradient)
            optimizer.apply_gradients([(gradient, variable)])
        return values([variable])

    assert_same(trained(sparse=True), trained(sparse=False))


# Half precision rounds the weights after each update, and nothing before it.
@every
@pytest.mark.parametrize("dtype, half_a_digit", [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_half_precision_keeps_its_statistics_in_float32(row, dtype, half_a_digit):
    def trained(dtype, samples):
        optimizer = row.make(gradient_accumulation_steps=K)
        variables = PROBLEM.variables(dtype)
        feed(optimizer, variables, samples)
        floats = [v for v in optimizer.variables if v.dtype.startswith(("float", "bf"))]
        assert {v.dtype for v in floats} == {"float32"}
        return variables

    rounded = [
        [tf.cast(tf.cast(g, dtype), "float32").numpy() for g in sample]
        for sample in PROBLEM.samples[0]
    ]
    start = [tf.cast(tf.cast(w, dtype), "float32").numpy() for w in PROBLEM.weights]
    rule = row.make_reference()
    exact = rule.step(start, rounded)
    found = [np.asarray(tf.cast(v, "float64")) for v in trained(dtype, rounded)]
    assert_close(found, exact, rtol=half_a_digit, atol=2e-6)


@every
@pytest.mark.parametrize("counts", [[1, 2, 3, 4], [8, 0, 8, 3]])
def test_samples_weigh_by_their_examples(row, counts):
    optimizer = row.make(gradient_accumulation_steps=K)
    found = run(optimizer, counts=counts)
    assert_close(found, expected(row, counts=counts), 2e-5, 4e-6)
    # The mean over no examples is NaN.
    without = PROBLEM._replace(
        samples=[
            [[g * (np.nan if not n else 1) for g in s] for s, n in zip(u, counts)]
            for u in PROBLEM.samples
        ]
    )
    optimizer = row.make(gradient_accumulation_steps=K)
    assert_same(run(optimizer, problem=without, counts=counts), found)
    assert int(optimizer.skipped_steps) == 0


@every
def test_a_tf_variable_is_as_good_as_a_keras_variable(row):
    optimizer = row.make(gradient_accumulation_steps=K, use_ema=True)
    variables = [tf.Variable(w, name=n) for w, n in zip(PROBLEM.weights, PROBLEM.names)]
    for samples in PROBLEM.samples:
        feed(optimizer, variables, samples)
    found = [v.numpy() for v in variables]
    assert_same(found, run(row.make(gradient_accumulation_steps=K, use_ema=True)))


@every
def test_nan_gradient_skips_the_window_and_never_enters_the_statistics(row):
    optimizer, variables = row.make(gradient_accumulation_steps=K), PROBLEM.variables()
    feed(optimizer, variables, PROBLEM.samples[0])
    before = values(variables + optimizer.variables)
    for bad in (np.nan, np.inf, -np.inf):
        poisoned = copy.deepcopy(PROBLEM.samples[1])
        poisoned[1][0][0, 0] = bad
        feed(optimizer, variables, poisoned)
    after = values(variables + optimizer.variables)
    changed = [new for old, new in zip(before, after) if not np.array_equal(old, new)]
    assert len(changed) == 1 and changed[0] == 3  # the count of skipped steps
    assert int(optimizer.skipped_steps) == 3 and int(optimizer.iterations) == 1
    feed(optimizer, variables, PROBLEM.samples[1])
    assert_same(values(variables), run(row.make(gradient_accumulation_steps=K), 2))
