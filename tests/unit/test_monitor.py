"""GSNRMonitor in `fit`: what it records is so, and training does not notice it."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import gsnr_tf
from gsnr_tf.callbacks import GSNRMonitor
from gsnr_tf.monitor.keys import KEYS
from gsnr_tf.monitor.run import Run
from gsnr_tf.stats.summary import FIELDS, R_EDGES
from tests import reference
from tests.problems import PROBLEMS, VARIANTS, feed, values

RNG = np.random.default_rng(0)
X = RNG.normal(size=(96, 6)).astype("float32")
Y = X[:, :2] + 0.5 * RNG.normal(size=(96, 2)).astype("float32")


def model_with(optimizer, **options):
    keras.utils.set_random_seed(3)
    layers = [keras.Input((6,)), keras.layers.Dense(5), keras.layers.Dense(2)]
    model = keras.Sequential(layers)
    model.compile(optimizer=optimizer, loss="mse", metrics=["mae"], **options)
    return model


def fit(model, callbacks=(), epochs=2, **options):
    options = {"batch_size": 8, "shuffle": False, "verbose": 0, **options}
    return model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), **options)


@pytest.mark.parametrize("name", ["momentum", "adam raw", "lamb decay", "lars all"])
def test_weights_and_state_are_the_same_to_the_bit(name, tmp_path):
    outcomes = []
    for callbacks in ([], [GSNRMonitor(tmp_path, every=2)]):
        model = model_with(VARIANTS[name].make(gradient_accumulation_steps=2))
        fit(model, callbacks, epochs=1)
        outcomes.append(values([*model.variables, *model.optimizer.variables]))
    for one, other in zip(*outcomes, strict=True):
        np.testing.assert_array_equal(one, other)


def test_nobody_pays_who_does_not_watch(tmp_path):
    def operations(watched):
        optimizer = gsnr_tf.GSNRAdam(0.1, gradient_accumulation_steps=2)
        variable = keras.Variable(np.ones(3), dtype="float32")
        optimizer.build([variable])
        if watched:
            optimizer.watch(5)

        @tf.function
        def step(gradient):
            optimizer.apply_gradients([(gradient, variable)])

        graph = step.get_concrete_function(tf.TensorSpec([3])).graph
        names = {op.type for op in graph.get_operations()}
        for inner in graph._functions.values():  # the branches of conditionals
            names |= {node.op for node in inner.cached_definition.node_def}
        return names

    assert "Timestamp" in operations(True)
    assert "Timestamp" not in operations(False)


@pytest.mark.parametrize("estimator, ceiling", [("paper", 2.0), ("robust", 1.0625)])
def test_the_record_is_that_of_the_samples(estimator, ceiling):
    problem = PROBLEMS["some agree"]
    optimizer = gsnr_tf.GSNRLamb(
        0.125,
        gradient_accumulation_steps=4,
        ceiling=ceiling,
        estimator=estimator,
        global_clipnorm=0.5,
    )
    variables = problem.variables()
    optimizer.build(variables)
    optimizer.watch(2)
    for number, samples in enumerate(problem.samples, start=1):
        before = values(variables)[0]
        assert optimizer.watched_update() == 2 * ((number - 1) // 2)
        feed(optimizer, variables, samples)
        if number != 2:
            continue
        update, samples_, steps, summary, times = optimizer.watched()
        of = dict(zip(FIELDS, summary.sums[0]))
        mean, variance = reference.statistics(np.array([one[0] for one in samples]))
        agreed = variance < 1e-12
        assert (update, samples_, steps) == (2, 4, 4) and agreed.any() and not agreed.all()
        r = mean[~agreed] ** 2 / variance[~agreed]
        if estimator == "paper":
            averaged = r
            multiplier = reference.multiplier(mean, variance, 0.1, ceiling)
        else:
            averaged = mean**2 / (mean**2 + variance / 3)
            multiplier = reference.robust_multiplier(mean, variance, 4, 0.1, ceiling)
            assert 0 < np.sum(multiplier == ceiling) < mean.size
        expected = {
            "r": averaged.sum(),
            "finite": averaged.size,
            "mean_sq": np.sum(mean**2),
            "variance": np.sum(variance),
            "informative": mean.size,
            "multiplier": multiplier.sum(),
            "at_floor": np.sum(multiplier == 0.1),
            "at_ceiling": np.sum(multiplier == ceiling),
            "theta_sq": np.sum(before**2),
        }
        for field, value in expected.items():
            assert of[field] == pytest.approx(value, rel=1e-4), field
        # θ ← θ − λφu: what was recorded of u is what moved the weights.
        moved = np.linalg.norm(values(variables)[0] - before)
        assert moved == pytest.approx(0.125 * of["phi"] * np.sqrt(of["u_sq"]), rel=1e-4)
        assert of["phi"] == pytest.approx(np.sqrt(of["theta_sq"] / of["u_sq"]), rel=1e-5)
        assert summary.r_counts.sum() == summary.multiplier_counts.sum() == mean.size
        # r itself, whatever the multiplier is made of.
        assert summary.r_counts[0, -1] == agreed.sum()
        in_bins, _ = np.histogram(r, R_EDGES)
        np.testing.assert_array_equal(summary.r_counts[0, 1:-1], in_bins)
        assert times == sorted(times)


def test_large_variables_are_counted_by_a_part_of_their_elements():
    variable = keras.Variable(np.zeros([700, 64]), dtype="float32")
    other = keras.Variable(np.zeros([10]), dtype="float32")
    optimizer = gsnr_tf.GSNRSGD(0.1, gradient_accumulation_steps=8)
    optimizer.build([variable, other])
    optimizer.watch(1)
    samples = [[0.3 + RNG.normal(size=(700, 64)), 0.3 + RNG.normal(size=10)] for _ in range(8)]
    feed(optimizer, [variable, other], samples)
    summary = optimizer.watched().summary
    np.testing.assert_allclose(summary.r_counts.sum(1), [44800, 10], rtol=1e-4)
    np.testing.assert_allclose(summary.multiplier_counts.sum(1), [44800, 10], 1e-4)
    # The share on the floor by counting a part, and by counting all.
    floor = summary.multiplier_counts[0, 0] / 44800
    mean, variance = reference.statistics(np.array([one[0] for one in samples]))
    multiplier = reference.multiplier(mean, variance, 0.1, 1.0)
    exact = np.mean(multiplier < 0.1 * 10 ** (1 / 20))
    assert floor == pytest.approx(exact, abs=0.03)


def test_fit_is_recorded(tmp_path):
    model = model_with(gsnr_tf.GSNRLamb(0.01, gradient_accumulation_steps=4))
    history = fit(model, [GSNRMonitor(tmp_path, every=1)], validation_data=(X, Y)).history
    run = Run(tmp_path)
    examples, updates = run.series("progress/updates")
    assert updates.tolist() == [1, 2, 3, 4, 5, 6]
    assert examples.tolist() == [32, 64, 96, 128, 160, 192]
    assert run.last("batch/examples") == 32 and run.last("batch/samples") == 4
    assert run.last("batch/accumulation") == 4 and run.last("progress/epoch") == 2
    steps, losses = run.series("validation/loss")
    assert steps.tolist() == [96, 192]
    np.testing.assert_allclose(losses, history["val_loss"], rtol=1e-5)
    gap = np.subtract(history["mae"], history["val_mae"])
    np.testing.assert_allclose(run.series("gap/mae")[1], gap, rtol=1e-3, atol=1e-5)
    for name in ("backward", "communication", "update"):
        assert (run.series(f"time/{name}")[1] >= 0).all()
    assert run.last("speed/examples_per_second") > 0
    assert run.info["optimizer"] == "GSNRLamb" and run.info["workers"] == 1
    assert run.paths == [v.path for v in model.trainable_variables]


def documented(name):
    group, _rest = name.split("/", 1)
    return name in KEYS or group == "variable" or f"{group}/<metric>" in KEYS


def test_every_key_is_in_the_table_and_the_table_in_the_readme(tmp_path):
    model = model_with(gsnr_tf.GSNRAdam(0.01, gradient_accumulation_steps=8))
    fit(model, [GSNRMonitor(tmp_path, every=1)], validation_data=(X, Y))
    written = set()
    for line in (tmp_path / "events.jsonl").read_text().splitlines():
        written |= json.loads(line)["values"].keys()
    assert not [name for name in written if not documented(name)]
    metrics = {f"{g}/<metric>" for g in ("train", "validation", "gap")}
    assert KEYS.keys() - metrics <= written
    readme = gsnr_tf.__path__[0] + "/monitor/README.md"
    rows = {}
    table = open(readme, encoding="utf-8").read().split("| key | meaning |")[1]
    for line in table.split("\n\n")[0].splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 2 and cells[0].startswith("`"):
            rows[cells[0].strip("`")] = cells[1]
    assert rows == KEYS


def test_a_resumed_training_goes_on_where_it_was(tmp_path):
    log = tmp_path / "log"
    model = model_with(gsnr_tf.GSNRAdam(0.01, gradient_accumulation_steps=2))
    fit(model, [GSNRMonitor(log, every=1)], epochs=1)
    model.save(tmp_path / "model.keras")
    fit(model, [GSNRMonitor(log, every=1)], epochs=1)  # lost
    resumed = keras.models.load_model(tmp_path / "model.keras")
    fit(resumed, [GSNRMonitor(log, every=4)], epochs=1)
    examples, updates = Run(log).series("progress/updates")
    assert updates.tolist() == [1, 2, 3, 4, 5, 6, 8, 12]
    assert examples.tolist() == [16 * u for u in updates]


def test_another_training_in_the_same_folder_takes_its_place(tmp_path):
    for every in (1, 3):
        model = model_with(gsnr_tf.GSNRAdam(0.01, gradient_accumulation_steps=2))
        fit(model, [GSNRMonitor(tmp_path, every=every)], epochs=1)
    assert Run(tmp_path).series("progress/updates")[1].tolist() == [3, 6]


def test_a_model_that_was_trained_before_is_recorded(tmp_path):
    model = model_with(gsnr_tf.GSNRAdam(0.01, gradient_accumulation_steps=2))
    fit(model, epochs=1)
    fit(model, [GSNRMonitor(tmp_path, every=3)], epochs=1)
    examples, updates = Run(tmp_path).series("progress/updates")
    assert updates.tolist() == [9, 12] and examples.tolist() == [144, 192]


class Own(keras.Sequential):
    """A model with a train step of its own, and perhaps a metric for its loss."""

    tracker = None

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self(x) - y))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        if self.tracker:
            self.tracker.update_state(loss, sample_weight=tf.shape(x)[0])
        return {"error": loss}


def own(tmp_path, tracker=None, loss=None, **options):
    """What is recorded of it."""
    model = Own([keras.Input((6,)), keras.layers.Dense(2)])
    model.tracker = tracker
    model.compile(gsnr_tf.GSNRSGD(0.1, gradient_accumulation_steps=2), loss=loss)
    fit(model, [GSNRMonitor(tmp_path, every=1, **options)], epochs=1)
    return Run(tmp_path)


def test_an_own_metric_of_the_loss_is_asked_where_keras_own_is_left_alone(tmp_path):
    run = own(tmp_path, keras.metrics.Mean(name="loss"), loss="mse")
    assert run.last("batch/examples") == 16 and len(run.series("train/error")[0]) == 6


def test_an_own_train_step_says_its_batch(tmp_path):
    with pytest.raises(ValueError, match="batch_size=None"):
        own(tmp_path)
    run = own(tmp_path, batch_size=8)
    assert run.last("batch/examples") == 16 and len(run.series("train/error")[0]) == 6


def test_under_a_strategy_and_with_loss_scaling(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = model_with(gsnr_tf.GSNRLamb(0.01))
    fit(model, [GSNRMonitor(tmp_path, every=2)], batch_size=16)
    run = Run(tmp_path)
    examples, updates = run.series("progress/updates")
    assert updates.tolist()[-1] == 12 - run.last("progress/skipped") // 2 * 2
    assert run.last("batch/samples") == 2 and run.last("batch/examples") == 16
    assert (np.diff(examples) >= 32).all()
    assert np.isfinite(run.series("gsnr/multiplier")[1]).all()


def test_within_xla_there_is_no_clock(tmp_path):
    model = model_with(gsnr_tf.GSNRAdam(0.01, gradient_accumulation_steps=2), jit_compile=True)
    fit(model, [GSNRMonitor(tmp_path, every=2)], epochs=1)
    run = Run(tmp_path)
    assert run.series("progress/updates")[1].tolist() == [2, 4, 6]
    assert run.names("time") == []


def test_what_cannot_be_watched_is_refused(tmp_path):
    with pytest.raises(TypeError, match="Received: Adam.*gamma=1"):
        fit(model_with("adam"), [GSNRMonitor(tmp_path)])
    with pytest.raises(ValueError, match="Received: every=0"):
        GSNRMonitor(tmp_path, every=0)
    with pytest.raises(ValueError, match="Received: every=0"):
        gsnr_tf.GSNRSGD(0.1).watch(0)
