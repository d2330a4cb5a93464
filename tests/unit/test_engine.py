"""The engine in one process."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import gsnr_tf
from gsnr_tf.engine import ConfigError
from gsnr_tf.engine.batch import Batch
from gsnr_tf.engine.data import Examples
from gsnr_tf.engine.precision import set_precision

CONFIG = {
    "train_batch_size": 16,
    "train_micro_batch_size_per_gpu": 2,
    "optimizer": {"type": "GSNRSGD", "params": {"lr": 0.1}},
    "steps_per_print": None,
}
rng = np.random.default_rng(0)
X = rng.normal(size=(40, 3)).astype("float32")
Y = (X @ np.array([[1.0], [2.0], [-1.0]])).astype("float32")


def network():
    keras.utils.set_random_seed(1)
    hidden = keras.layers.Dense(4, activation="tanh")
    return keras.Sequential([keras.Input((3,)), hidden, keras.layers.Dense(1)])


def make(data=(X, Y), model=None, traced=False, **changes):
    """An engine; not traced, since that takes longer than a few updates do."""
    config = {**CONFIG, **changes}
    return gsnr_tf.initialize(
        model or network(), config, "mse", ["mae"], data, run_eagerly=not traced
    )


def squared_error(model, x=X[:16], y=Y[:16]):
    return float(np.mean((model(x).numpy() - y) ** 2))


# ---- training
# ---------------------------------------------------------------------------


def test_an_update_is_the_mean_gradient_of_the_whole_training_batch():
    """gamma=1 is plain SGD: one step of gradient descent on all 16 rows."""
    engine = make(gsnr={"gamma": 1.0}, traced=True)
    model = network()
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(X[:16]) - Y[:16]))
    gradients = tape.gradient(loss, model.trainable_variables)
    returned = engine.train_batch((X[:16], Y[:16]))
    assert returned == pytest.approx(float(loss), rel=1e-6)
    for new, old, g in zip(engine.model.weights, model.weights, gradients):
        np.testing.assert_allclose(new, old - 0.1 * g, rtol=1e-5, atol=1e-7)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in gradients))
    assert engine.get_global_grad_norm() == pytest.approx(norm, rel=1e-5)


def test_counters_have_deepspeeds_names_and_forms():
    engine = make()
    assert (engine.global_steps, engine.global_samples, engine.skipped_steps) == (
        0,
        0,
        0,
    )
    assert engine.get_global_grad_norm() is None
    engine.train_batch()
    engine.train_batch()
    assert (engine.global_steps, engine.global_samples) == (2, 32)
    assert engine.train_batch_size() == 16
    assert engine.train_micro_batch_size_per_gpu() == 2
    assert engine.gradient_accumulation_steps() == 8
    assert engine.get_lr() == pytest.approx([0.1])


def test_the_scheduler_moves_with_updates():
    params = {"warmup_max_lr": 0.4, "warmup_num_steps": 4, "warmup_type": "linear"}
    engine = make(scheduler={"type": "WarmupLR", "params": params})
    rates = []
    for _ in range(6):
        rates += engine.get_lr()
        engine.train_batch()
    np.testing.assert_allclose(rates, [0, 0, 0.1, 0.2, 0.3, 0.4], rtol=1e-6)


def test_a_batch_of_ones_own_is_checked_for_its_size():
    with pytest.raises(ValueError, match="2 × 8 = 16 rows .* Received: 8 rows"):
        make().train_batch((X[:8], Y[:8]))
    with pytest.raises(ValueError, match="one row for each example.*15, 16"):
        make().train_batch((X[:16], Y[:15]))


def test_without_data_it_says_so():
    engine = make(data=None)
    for call in (engine.train_batch, engine.fit):
        with pytest.raises(ValueError, match="There is no data"):
            call()


def test_evaluation_is_the_loss_and_changes_nothing():
    engine = make()
    before = engine.model.get_weights()
    loss = engine.eval_batch((X[:16], Y[:16]))
    assert loss == pytest.approx(squared_error(engine.model), rel=1e-6)
    assert engine.global_steps == 0
    for one, other in zip(before, engine.model.get_weights()):
        np.testing.assert_array_equal(one, other)


def test_fit_and_train_batch_go_the_same_way():
    looped, fitted = make(traced=True), make(traced=True)
    for _ in range(4):
        looped.train_batch()
    history = fitted.fit(epochs=2, verbose=0).history
    assert list(history) == ["loss", "mae"] and len(history["loss"]) == 2
    for one, other in zip(looped.model.get_weights(), fitted.model.get_weights()):
        np.testing.assert_array_equal(one, other)


def test_fit_takes_what_model_fit_takes():
    seen = []

    class See(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append((epoch, sorted(logs)))

    engine = make(data=None)
    history = engine.fit(
        X,
        Y,
        sample_weight=np.ones(40),
        validation_split=0.2,
        epochs=3,
        initial_epoch=1,
        steps_per_epoch=1,
        callbacks=[See()],
        verbose=0,
        class_weight=None,
    )
    assert seen == [(n, ["loss", "mae", "val_loss", "val_mae"]) for n in (1, 2)]
    assert engine.global_steps == 2
    expected = squared_error(engine.model, X[32:], Y[32:])
    assert history.history["val_loss"][-1] == pytest.approx(expected, rel=1e-5)


def test_weights_of_examples_count():
    weights = np.repeat([1.0, 0.0], 8).astype("float32")
    engine = make()
    loss = engine.train_batch((X[:16], Y[:16], weights))
    start = squared_error(network(), X[:8], Y[:8])
    assert loss == pytest.approx(start / 2, rel=1e-5)


def test_batches_that_keras_makes_pass_as_they_are():
    class Ready(keras.utils.PyDataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return X[2 * index : 2 * index + 2], Y[2 * index : 2 * index + 2]

    engine = make(data=None)
    engine.fit(Ready(), epochs=2, verbose=0)
    assert engine.global_steps == 2


@pytest.mark.parametrize(
    "arguments, told",
    [
        ({"batch_size": 32}, "batch_size=32, with train_micro_batch_size_per_gpu=2"),
        ({"x": X[:10], "y": Y[:10]}, "10 examples, fewer than train_batch_size=16"),
        ({"x": X, "y": Y, "steps_per_epoch": 9}, "which make 2 training batches"),
        ({"x": X, "y": Y, "validation_split": 1.5}, "validation_split=1.5"),
        ({"validation_split": 0.5}, "validation_split takes arrays"),
    ],
)
def test_what_fit_cannot_do_is_refused(arguments, told):
    with pytest.raises(ValueError, match=told):
        make().fit(**arguments)


def test_a_line_now_and_then(capsys):
    engine = make(steps_per_print=2)
    for _ in range(5):
        engine.train_batch()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(", ")[:3] for line in lines] == [
        [f"step={n}", "skipped=0", "lr=0.1"] for n in (2, 4)
    ]


def test_the_printed_loss_is_the_update_s_in_both_ways(capsys):
    engine = make(steps_per_print=1)
    loss = engine.train_batch()
    assert f"loss={loss:.4f}" in capsys.readouterr().out
    loss = make(steps_per_print=2).fit(epochs=1, verbose=0).history["loss"][0]
    assert f"step=2, skipped=0, lr=0.1, batch=16, loss={loss:.4f}" in capsys.readouterr().out


def test_an_unbuilt_model_and_a_strategy_are_refused():
    with pytest.raises(ValueError, match="has no variables yet. Give it a keras.Input"):
        make(model=keras.Sequential([keras.layers.Dense(1)]))
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        with pytest.raises(ValueError, match="inside the scope of OneDeviceStrategy"):
            make()


def test_a_configuration_that_cannot_be_used_is_refused():
    with pytest.raises(ConfigError, match="nonsense: unknown key"):
        make(nonsense=1)
    with pytest.raises(ConfigError, match="on 1 rank.s.: 2 × 3 × 1 = 6, not 16"):
        make(gradient_accumulation_steps=3)


# ---- data
# -------------------------------------------------------------------------------


class Alone:
    def gather(self, value):
        return [value]


def parts(ranks, rank, data, update=0, seed=5, count=4, updates=None):
    """Numbers of the first examples, `[micro-batches, micro]`."""
    batch = Batch(train=8, micro=2, accumulation=4 // ranks, ranks=ranks)
    examples = Examples(data, batch, Alone(), rank, seed, updates)
    micro = examples.micro_batches(update).take(count // ranks)
    return [b[0].numpy().tolist() for b in micro], examples.updates


NUMBERS = np.arange(21)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("update", [0, 1, 2, 7])
def test_a_training_batch_is_the_same_parts_on_any_number_of_ranks(ranks, update):
    alone, _ = parts(1, 0, (NUMBERS, NUMBERS), update)
    shared = [parts(ranks, r, (NUMBERS, NUMBERS), update)[0] for r in range(ranks)]
    assert [part for step in zip(*shared) for part in step] == alone


def test_an_epoch_has_each_example_once_in_a_new_order():
    epochs = [parts(1, 0, (NUMBERS, NUMBERS), 2 * e, count=8) for e in (0, 1)]
    for order, updates in epochs:
        rows = [row for part in order for row in part]
        assert updates == 2 and len(set(rows)) == 16
    assert epochs[0] != epochs[1]
    assert parts(1, 0, (NUMBERS, NUMBERS), count=8, seed=6) != epochs[0]
    in_order, _ = parts(1, 0, (NUMBERS, NUMBERS), count=8, seed=None)
    assert in_order == np.arange(16).reshape(8, 2).tolist()


def test_a_dataset_keeps_its_order_and_repeats():
    data = tf.data.Dataset.from_tensor_slices((NUMBERS, NUMBERS))
    order, updates = parts(1, 0, data, count=12)
    assert updates == 2
    assert order == np.tile(np.arange(16), 2)[:24].reshape(12, 2).tolist()
    # Training batch 3 is the second of its epoch.
    assert parts(1, 0, data, update=3)[0] == np.arange(8, 16).reshape(4, 2).tolist()


def test_structures_of_arrays_stay_structures():
    data = ({"a": NUMBERS, "b": NUMBERS[:, None] * 2.0}, NUMBERS)
    batch = Batch(8, 2, 4, 1)
    x, y = next(iter(Examples(data, batch, Alone(), 0).micro_batches(0)))
    np.testing.assert_array_equal(x["a"], y)
    np.testing.assert_array_equal(x["b"][:, 0], 2 * y.numpy())
    assert x["b"].dtype == tf.float32 and x["b"].shape == (2, 1)


@pytest.mark.parametrize(
    "data, told",
    [
        ((NUMBERS, NUMBERS[1:]), "one row for each example"),
        (tf.data.Dataset.from_tensor_slices(X).batch(4), "seems to be batched"),
        (tf.data.Dataset.from_tensors(1).repeat(), "unknown or infinite length"),
    ],
)
def test_data_that_makes_no_batches_is_refused(data, told):
    with pytest.raises(ValueError, match=told):
        parts(1, 0, data)


# ---- precision
# --------------------------------------------------------------------------


def policies(model):
    return [layer.dtype_policy.name for layer in model.layers]


def test_mixed_precision_is_the_layers_and_not_the_global_policy():
    engine = make(bf16={"enabled": True}, traced=True)
    assert policies(engine.model) == ["mixed_bfloat16", "float32"]
    assert keras.config.dtype_policy().name == "float32"
    assert all(v.dtype == "float32" for v in engine.model.variables)
    assert engine.model.layers[0](X[:2]).dtype == tf.bfloat16
    first = [engine.train_batch() for _ in range(8)]
    assert first[-1] < first[0] / 2
    assert engine.loss_scale is None


def test_layers_with_a_policy_of_their_own_keep_it():
    own = keras.layers.Dense(4, dtype="mixed_bfloat16")
    dense = keras.layers.Dense
    model = keras.Sequential([keras.Input((3,)), own, dense(4), dense(1)])
    set_precision(model, "mixed_float16")
    assert policies(model) == ["mixed_bfloat16", "mixed_float16", "float32"]


def test_the_output_of_a_model_inside_the_model_stays_float32():
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.ReLU()])
    inputs = keras.Input((3,))
    model = keras.Model(inputs, inner(keras.layers.Dense(4)(inputs)))
    set_precision(model, "mixed_float16")
    assert policies(inner) == ["mixed_float16", "float32"]
    assert model(X[:2]).dtype == tf.float32


def test_dynamic_loss_scale_skips_and_recovers():
    fp16 = {"enabled": True, "initial_scale_power": 20, "hysteresis": 2}
    engine = make(fp16=fp16, traced=True)
    assert type(engine.optimizer) is gsnr_tf.LossScaleOptimizer
    scales = []
    for _ in range(14):
        engine.train_batch()
        scales.append(engine.loss_scale)
    assert engine.global_steps == 14
    # The first overflow is forgiven; each further one halves.
    assert 2 < engine.skipped_steps < 14
    assert scales[:2] == [2.0**20, 2.0**19]
    assert scales[-1] == 2.0 ** (20 - engine.skipped_steps + 1)
    assert squared_error(engine.model) < squared_error(network())


def test_a_fixed_loss_scale_changes_nothing_but_the_range():
    scaled = make(fp16={"enabled": True, "loss_scale": 128.0})
    plain = make(fp16={"enabled": True, "loss_scale": 1.0})
    assert scaled.loss_scale == 128
    for engine in (scaled, plain):
        engine.train_batch()
    for one, other in zip(scaled.model.get_weights(), plain.model.get_weights()):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


# ---- optimizers
# -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, made",
    [
        ("ADAMW", "DistributedDeepSpeedAdam"),
        ("keras.muon", "DistributedMuon"),
        ("gsnrlars", "GSNRLars"),
    ],
)
def test_every_optimizer_by_its_name(name, made):
    engine = make(optimizer={"type": name, "params": {"lr": 0.01}})
    before = engine.model.get_weights()
    engine.train_batch()
    assert type(engine.optimizer).__name__ == made
    for one, other in zip(before, engine.model.get_weights()):
        assert np.abs(one - other).max() > 0


def test_keys_reach_the_optimizer():
    engine = make(
        optimizer={"type": "GSNRAdam", "params": {"betas": [0.8, 0.9], "eps": 1e-3}},
        gradient_clipping=0.5,
        gsnr={"gamma": 0.2, "ceiling": 3.0, "estimator": "robust"},
        zero_optimization={"stage": 2},
    )
    optimizer = engine.optimizer
    assert (optimizer.beta_1, optimizer.beta_2, optimizer.epsilon) == (0.8, 0.9, 1e-3)
    assert (optimizer.gamma, optimizer.ceiling) == (0.2, 3.0)
    assert (optimizer.estimator, optimizer.second_moment) == ("robust", "raw")
    assert optimizer.global_clipnorm == 0.5
    assert optimizer.gradient_accumulation_steps == 8
    # One rank has nothing to divide.
    assert optimizer.sharding == "none"


# ---- times and counts
# -------------------------------------------------------------------


def test_the_breakdown_adds_up_to_the_update(capsys):
    engine = make(wall_clock_breakdown=True, steps_per_print=1, traced=True)
    reference = make(traced=True)
    for _ in range(2):
        engine.train_batch()
        reference.train_batch()
    times = capsys.readouterr().out.splitlines()[1::2]
    assert len(times) == 2
    for line in times:
        rank, phases = line.split(": ")
        assert rank == "  rank 0"
        names, numbers = zip(*(p.split(" ")[:2] for p in phases.split(", ")))
        assert names == ("forward", "backward", "communication", "update")
        assert all(float(number) >= 0 for number in numbers)
        assert float(numbers[0]) > 0 and float(numbers[3]) > 0
    for one, other in zip(engine.model.get_weights(), reference.model.get_weights()):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("way", ["fit", "train_batch"])
def test_a_profile_counts_the_products_of_an_update(tmp_path, way):
    path = tmp_path / "profile.txt"
    profile = {"enabled": True, "profile_step": 2, "output_file": str(path)}
    engine = make(flops_profiler=profile)
    if way == "fit":
        engine.fit(epochs=1, verbose=0)
    else:
        engine.train_batch()
        assert not path.exists()
        engine.train_batch()
    # 16 examples; the first layer has two products, the second three.
    operations = 16 * 2 * (2 * 3 * 4 + 3 * 4 * 1)
    text = path.read_text()
    assert text.startswith(f"rank 0: {operations} floating-point operations in update 2, ")
    assert text.rstrip().endswith(" MiB")


# ---- records
# ----------------------------------------------------------------------------


def test_events_go_to_the_sinks_that_are_enabled(tmp_path):
    pytest.importorskip("gsnr_tf.monitor.sinks")
    place = {"enabled": True, "output_path": str(tmp_path), "job_name": "job"}
    engine = make(csv_monitor=place, tensorboard=place, fp16={"enabled": True})
    losses = [engine.train_batch() for _ in range(2)]
    rows = (tmp_path / "job" / "events.csv").read_text().splitlines()
    named = [row.split(",") for row in rows[1:]]
    for step, loss in zip((16, 32), losses):
        told = {name: float(value) for at, name, value in named if at == str(step)}
        assert told["Train/Samples/train_loss"] == pytest.approx(loss, rel=1e-5)
        assert told["Train/Samples/lr"] == pytest.approx(0.1)
        assert told["Train/Samples/loss_scale"] >= 1
    assert list((tmp_path / "job" / "tensorboard").glob("events*"))


def test_the_monitor_records_under_fit(tmp_path):
    if not hasattr(gsnr_tf.callbacks, "GSNRMonitor"):
        pytest.skip("GSNRMonitor is not there yet.")
    record = {"monitor_interval": 1, "monitor_path": str(tmp_path / "record")}
    make(gsnr=record).fit(epochs=2, verbose=0)
    lines = (tmp_path / "record" / "events.jsonl").read_text().splitlines()
    assert max(int(line.split(":")[1].split(",")[0]) for line in lines) == 4 * 16
