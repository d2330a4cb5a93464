"""The engine on several ranks: one job description, several sizes."""

import numpy as np
import pytest

CONFIG = {
    "train_batch_size": 32,
    "train_micro_batch_size_per_gpu": 4,
    "optimizer": {"type": "GSNRLamb", "params": {"lr": 0.02, "weight_decay": 0.01}},
    "scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": 20}},
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 0},
    "steps_per_print": None,
}
CONFIG["scheduler"]["params"]["warmup_num_steps"] = 3


def problem(layers=()):
    """A model, the same on all ranks, and examples: three training batches and a rest."""
    import keras
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.normal(size=(107, 5)).astype("float32")
    y = (x[:, :1] * x[:, 1:2] + 0.1 * rng.normal(size=(107, 1))).astype("float32")
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense
    model = keras.Sequential([keras.Input((5,)), dense(16, activation="tanh"), *layers, dense(1)])
    return model, x, y


def train(config, way):
    """Losses of six updates, weights, counters and the norm of the last gradient.

    Under `fit` by a train step that is traced, else eagerly, which takes less time.
    """
    import tensorflow as tf

    import gsnr_tf

    model, x, y = problem()
    data = (x, y)
    if way == "dataset":
        data = tf.data.Dataset.from_tensor_slices(data)
    eager = way != "fit"
    engine = gsnr_tf.initialize(model, config, "mse", training_data=data, run_eagerly=eager)
    if way == "fit":
        losses = engine.fit(epochs=2, verbose=0).history["loss"]
    else:
        losses = [engine.train_batch() for _ in range(6)]
    counters = [engine.global_steps, engine.global_samples, engine.skipped_steps]
    counters += [engine.train_batch_size(), engine.get_lr()]
    return losses, model.get_weights(), counters, engine.get_global_grad_norm()


STAGE_2 = {**CONFIG, "zero_optimization": {"stage": 2}}
KERAS = {**CONFIG, "optimizer": {"type": "AdamW"}, "zero_optimization": {}}


@pytest.mark.parametrize(
    "ranks, config, way",
    [
        (2, CONFIG, "batches"),
        (2, KERAS, "dataset"),
        (4, CONFIG, "fit"),
        pytest.param(4, STAGE_2, "batches", marks=pytest.mark.slow),
    ],
)
def test_the_same_file_gives_the_same_curve_on_any_number_of_ranks(on_ranks, ranks, config, way):
    losses, weights, counters, norm = train(config, way)
    assert counters[:4] == [6, 6 * 32, 0, 32]
    for found, others, counted, other_norm in on_ranks(ranks, train, config, way):
        # Sums of float32 in another order, over six updates.
        np.testing.assert_allclose(found, losses, rtol=1e-5)
        for weight, other in zip(weights, others):
            np.testing.assert_allclose(other, weight, rtol=1e-4, atol=1e-5)
        assert counted == counters
        assert other_norm == pytest.approx(norm, rel=1e-4)


def disagreeing(config, kind):
    """The error of an engine whose configuration is another one on rank 1."""
    import gsnr_tf
    from gsnr_tf.engine import ConfigError

    model, _x, _y = problem()
    if gsnr_tf.rank() == 1:
        change = {"differs": {"gradient_clipping": 2.0}, "is wrong": {"nonsense": 1}}
        config = {**config, **change[kind]}
    try:
        gsnr_tf.initialize(model, config, "mse")
    except ConfigError as error:
        return str(error)


@pytest.mark.parametrize(
    "kind, told",
    [
        ("differs", "gradient_clipping is 1.0 on rank 0 and 2.0 on rank 1"),
        (
            "is wrong",
            "Rank 1: The configuration cannot be used:\n  nonsense: unknown key",
        ),
    ],
)
def test_ranks_with_different_configurations_stop_all_of_them(on_ranks, kind, told):
    for message in on_ranks(2, disagreeing, CONFIG, kind):
        assert told in message


def different_data(config):
    import gsnr_tf

    model, x, y = problem()
    try:
        gsnr_tf.initialize(model, config, "mse", training_data=(x + gsnr_tf.rank(), y))
    except ValueError as error:
        return str(error)


def test_ranks_with_different_data_stop_all_of_them(on_ranks):
    for message in on_ranks(2, different_data, CONFIG):
        assert "that of rank(s) [1] is not" in message


def apart(config):
    """Ranks that begin with other weights, and have a BatchNorm."""
    import keras

    import gsnr_tf

    model, x, y = problem([keras.layers.BatchNormalization()])
    for variable in model.variables:
        variable.assign(variable + 0.1 * gsnr_tf.rank())
    engine = gsnr_tf.initialize(model, config, "mse", training_data=(x, y), run_eagerly=True)
    engine.train_batch()
    norm = model.layers[1]
    local = [v.numpy() for v in norm.non_trainable_variables]
    rows = slice(8 * gsnr_tf.rank(), 8 * gsnr_tf.rank() + 8)
    loss = engine.eval_batch((x[rows], y[rows]))
    weights = [v.numpy() for v in model.variables]
    own = float(((model(x[rows], training=False) - y[rows]) ** 2).numpy().mean())
    history = engine.fit(validation_data=(x, y), epochs=1, verbose=0).history
    return local, [v.numpy() for v in norm.non_trainable_variables], {
        "weights": weights,
        "after": [v.numpy() for v in model.variables],
        "loss": loss,
        "own": own,
        "history": history,
    }  # fmt: skip


@pytest.mark.parametrize("config", [CONFIG, KERAS], ids=["gsnr", "keras"])
def test_weights_statistics_and_metrics_are_those_of_all_ranks(on_ranks, config):
    (local, _, one), (other_local, _, other) = on_ranks(2, apart, config)
    assert np.abs(local[0] - other_local[0]).max() > 1e-3
    # Position of the moving mean and variance among the variables of the model.
    (mean, variance), (other_mean, other_variance) = local, other_local
    between = (mean - other_mean) ** 2 / 4
    np.testing.assert_allclose(one["weights"][4], (mean + other_mean) / 2, rtol=1e-6)
    total = (variance + other_variance) / 2 + between
    np.testing.assert_allclose(one["weights"][5], total, rtol=1e-6)
    for key in ("weights", "after"):
        for weight, same in zip(one[key], other[key]):
            np.testing.assert_array_equal(weight, same)
    np.testing.assert_allclose(one["loss"], (one["own"] + other["own"]) / 2, rtol=1e-5)
    assert one["loss"] == other["loss"]
    assert one["history"] == other["history"]


def drifted(config, reaction, folder):
    """A rank whose weights are changed: what `fit` and `save_checkpoint` say of it."""
    import keras

    import gsnr_tf

    model, x, y = problem()
    config = {**config, "gsnr": {"consistency_check": reaction}}
    engine = gsnr_tf.initialize(model, config, "mse", training_data=(x, y), run_eagerly=True)

    class Drift(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            # After the last update, which would tell of it itself.
            if gsnr_tf.rank() == 1 and batch == self.params["steps"] - 1:
                model.trainable_variables[1].assign_add([0.25] * 16)

    told = []
    for attempt in (
        lambda: engine.fit(epochs=1, verbose=0, callbacks=[Drift()]),
        lambda: engine.save_checkpoint(folder),
    ):
        try:
            attempt()
            told.append(None)
        except gsnr_tf.callbacks.RanksDiffer as error:
            told.append(str(error))
    return told, model.get_weights()


def test_drift_stops_fit_and_saves_no_checkpoint(on_ranks, tmp_path):
    for told, _ in on_ranks(2, drifted, KERAS, "stop", str(tmp_path)):
        assert len(told) == 2
        assert all("/bias (rank 0 / rank 1)" in error for error in told)
    assert not list(tmp_path.rglob("*.h5"))


@pytest.mark.parametrize("reaction", ["broadcast", "off"])
def test_drift_is_mended_or_left_as_the_configuration_says(on_ranks, tmp_path, reaction):
    runs = on_ranks(2, drifted, KERAS, reaction, str(tmp_path))
    (told, weights), (other_told, other_weights) = runs
    assert told == other_told == [None, None]
    alike = all((mine == yours).all() for mine, yours in zip(weights, other_weights))
    assert alike == (reaction == "broadcast")


def saved(config, folder, tag):
    import gsnr_tf

    model, x, y = problem()
    engine = gsnr_tf.initialize(model, config, "mse", training_data=(x, y))
    engine.fit(epochs=1, verbose=0)
    told = None
    try:
        engine.save_checkpoint(folder, tag and f"{tag}{gsnr_tf.rank()}", {"note": "a"})
    except gsnr_tf.resilience.CheckpointError as error:
        told = str(error)
    engine.fit(epochs=1, verbose=0)
    return model.get_weights(), told


def resumed(config, folder):
    import gsnr_tf

    model, x, y = problem()
    for variable in model.variables:
        variable.assign(variable * 0)
    engine = gsnr_tf.initialize(model, config, "mse", training_data=(x, y))
    path, client_state = engine.load_checkpoint(folder)
    state = engine.global_steps, engine.global_samples, engine.get_lr()
    engine.fit(epochs=1, verbose=0)
    return model.get_weights(), path, client_state, state


def test_slices_of_two_ranks_go_on_exactly_on_two_and_to_rounding_on_one(on_ranks, tmp_path):
    folder = str(tmp_path)
    (weights, _), _ = on_ranks(2, saved, STAGE_2, folder, None)
    for found, path, client_state, state in on_ranks(2, resumed, STAGE_2, folder):
        assert path == f"{folder}/global_step3" and client_state == {"note": "a"}
        for weight, other in zip(weights, found):
            np.testing.assert_array_equal(other, weight)
    alone, _, _, alone_state = resumed(STAGE_2, folder)
    assert alone_state == state and state[:2] == (3, 96)
    for weight, other in zip(weights, alone):
        np.testing.assert_allclose(other, weight, rtol=1e-4, atol=1e-5)


def test_ranks_with_different_tags_write_nothing(on_ranks, tmp_path):
    for _, told in on_ranks(2, saved, CONFIG, str(tmp_path), "tag"):
        assert told == "The ranks have different tags. Received, by rank: ['tag0', 'tag1']."
    assert list(tmp_path.iterdir()) == []


def with_a_bad_disk(config, folder):
    """What both ranks are told where rank 0's disk is full, at once and in the middle."""
    import errno
    import shutil
    from unittest import mock

    import gsnr_tf
    from gsnr_tf.resilience import CheckpointError, array_file

    model, x, y = problem()
    engine = gsnr_tf.initialize(model, config, "mse", training_data=(x, y))
    engine.train_batch()
    engine.save_checkpoint(folder, "good")
    weights = model.get_weights()
    engine.train_batch()
    full = OSError(errno.ENOSPC, "No space left on device")
    as_bytes = array_file.as_bytes
    bad = [
        mock.patch.object(shutil, "disk_usage", return_value=mock.Mock(free=7)),
        mock.patch.object(array_file, "as_bytes", side_effect=[as_bytes([1])] * 3 + [full]),
    ]
    told = []
    for fault in bad:
        with fault if gsnr_tf.rank() == 0 else mock.MagicMock():
            try:
                engine.save_checkpoint(folder, "bad")
            except CheckpointError as error:
                told.append(str(error))
    path, _ = engine.load_checkpoint(folder)
    same = [(a == b).all() for a, b in zip(weights, model.get_weights(), strict=True)]
    engine.train_batch()
    engine.save_checkpoint(folder, "after")
    return told, path, same


@pytest.mark.parametrize("config", [CONFIG, STAGE_2], ids=["whole", "slices"])
def test_a_full_disk_of_one_rank_is_told_by_all_and_training_goes_on(on_ranks, tmp_path, config):
    for told, path, same in on_ranks(2, with_a_bad_disk, config, str(tmp_path)):
        assert len(told) == 2 and all(text.startswith("rank 0: ") for text in told)
        assert "has no room for the checkpoint 'bad'" in told[0] and " 7 are" in told[0]
        assert "No space left on device" in told[1] and "bytes, and " in told[1]
        assert path == f"{tmp_path}/good" and all(same)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".lock", "after", "good", "latest"]


RAMP = {
    "train_batch_size": 16,
    "train_micro_batch_size_per_gpu": 4,
    "optimizer": {"type": "GSNRSGD", "params": {"lr": 0.01}},
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {
            "warmup_max_lr": 0.01,
            "warmup_num_steps": 3,
            "warmup_type": "linear",
            "total_num_steps": 20,
        },
    },
    "gsnr": {"batch_ramp": {"max_train_batch_size": 32, "share": 100.0, "every": 1}},
    "zero_optimization": {"stage": 2},
    "steps_per_print": None,
}


def ramped(config, folder):
    """An epoch of noise, from the checkpoint if there is one; what comes of it."""
    import warnings

    import numpy as np

    import gsnr_tf

    warnings.simplefilter("ignore")
    model, x, _ = problem()
    y = np.random.default_rng(1).normal(size=(107, 1)).astype("float32")
    engine = gsnr_tf.initialize(model, config, "mse", training_data=(x, y), run_eagerly=True)
    engine.load_checkpoint(folder)
    engine.fit(epochs=1, verbose=0)
    counters = [engine.global_steps, engine.global_samples, engine.train_batch_size()]
    counters.append(engine.gradient_accumulation_steps())
    return model.get_weights(), [*counters, engine.get_lr()], engine


def ramped_twice(config, folder):
    """Two epochs of one job, with a checkpoint between them."""
    weights, counters, engine = ramped(config, folder)
    engine.save_checkpoint(folder)
    engine.fit(epochs=1, verbose=0)
    return weights, counters, engine.model.get_weights()


def ramped_once(config, folder):
    return ramped(config, folder)[:2]


def test_a_batch_grows_alike_on_any_number_of_ranks_and_goes_on_there(on_ranks, tmp_path):
    """5 updates of 16 examples and one of the 16 left; then 3 of 32.

    To the scheduler these are 12 updates of 16.
    """
    rates = [pytest.approx([0.01 * 2**0.5 * (21 - t) / 17]) for t in (6, 12)]
    folder = str(tmp_path)
    (first, counters, second), _ = on_ranks(2, ramped_twice, RAMP, folder)
    assert counters[:4] == [6, 96, 32, 4]
    assert counters[4] == rates[0]
    for weights, after in on_ranks(2, ramped_once, RAMP, folder):
        assert after == [9, 192, 32, 4, rates[1]]
        for one, other in zip(second, weights):
            np.testing.assert_array_equal(one, other)
    anew, fresh = ramped_once(RAMP, str(tmp_path / "none"))
    assert fresh == [6, 96, 32, 8, rates[0]]
    resumed, after = ramped_once(RAMP, folder)
    assert after == [9, 192, 32, 8, rates[1]]
    for expected, found in ((first, anew), (second, resumed)):
        for one, other in zip(expected, found):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def timed(config):
    """What rank 0 prints, and the seconds that each rank has counted."""
    import contextlib
    import io

    import gsnr_tf

    config = {**config, "wall_clock_breakdown": True, "steps_per_print": 1}
    config["flops_profiler"] = {"enabled": True, "profile_step": 2}
    model, x, y = problem()
    engine = gsnr_tf.initialize(model, config, "mse", training_data=(x, y))
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        for _ in range(2):
            engine.train_batch()
    return output.getvalue()


def test_rank_0_tells_the_times_of_every_rank(on_ranks):
    first, second = on_ranks(2, timed, STAGE_2)
    assert second == ""
    lines = first.splitlines()
    assert len(lines) == 2 * 3 + 2
    for line in lines[1:3]:
        phases = dict(part.split(" ")[:2] for part in line.split(": ")[1].split(", "))
        assert float(phases["communication"]) > 0
    operations = 16 * 2 * (2 * 5 * 16 + 3 * 16)
    profile = [line for line in lines if "floating-point" in line]
    assert [line.split(" float")[0] for line in profile] == [
        f"rank {rank}: {operations}" for rank in (0, 1)
    ]
