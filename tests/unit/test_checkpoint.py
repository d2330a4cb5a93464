"""Checkpoints: exact continuation, and what a crash or a damaged file does to them."""

import json
import os
import random
import signal

import keras
import numpy as np
import pytest

import gsnr_tf
from gsnr_tf.resilience import CheckpointError, checkpoint, checkpoint_files

CONFIG = {
    "train_batch_size": 16,
    "gradient_accumulation_steps": 4,
    "optimizer": {"type": "GSNRAdam", "params": {"lr": 0.02, "use_ema": True}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 6}},
    "steps_per_print": None,
}
FP16 = {"enabled": True, "initial_scale_power": 22, "loss_scale_window": 3}
VARIANTS = {
    "fp16": {**CONFIG, "fp16": FP16},
    "keras": {**CONFIG, "optimizer": {"type": "Nadam"}},
}
rng = np.random.default_rng(0)
X = rng.normal(size=(69, 4)).astype("float32")
Y = X[:, :1] * X[:, 1:2]
pytestmark = pytest.mark.filterwarnings("ignore:.*samples an update")


def make(config=CONFIG, units=8, traced=False):
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(units, activation="tanh"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(1),
        ]
    )
    return gsnr_tf.initialize(
        model, config, "mse", training_data=(X, Y), run_eagerly=not traced
    )


def state(engine):
    variables = [*engine.model.variables, *engine.optimizer.variables]
    counters = [engine.global_steps, engine.global_samples, engine.skipped_steps]
    return [v.numpy() for v in variables] + counters


def same(one, other):
    return len(one) == len(other) and all(
        np.array_equal(a, b) for a, b in zip(one, other)
    )


@pytest.mark.parametrize("config", VARIANTS.values(), ids=list(VARIANTS))
def test_two_epochs_are_one_and_a_resumed_one(tmp_path, config):
    whole = make(config, traced=True)
    whole.fit(epochs=1, verbose=0)
    after_one = state(whole)
    whole.save_checkpoint(tmp_path)
    numbers = random.random(), np.random.random()
    whole.fit(epochs=1, verbose=0)
    after_two = state(whole)
    assert not same(after_one, after_two)
    assert whole.skipped_steps > 0 or "fp16" not in config

    parts = make(config, traced=True)
    path, client_state = parts.load_checkpoint(tmp_path)
    assert (path, client_state) == (f"{tmp_path}/global_step4", {})
    assert same(state(parts), after_one)
    assert (random.random(), np.random.random()) == numbers
    parts.fit(epochs=1, verbose=0)
    assert same(state(parts), after_two)
    parts.save_checkpoint(tmp_path)
    files = [(tmp_path / f"global_step{n}" / "state.h5").read_bytes() for n in (4, 8)]
    assert files[0] != files[1]


def test_in_the_middle_of_an_epoch_the_order_goes_on(tmp_path):
    whole = make()
    for _ in range(2):
        whole.train_batch()
    whole.save_checkpoint(tmp_path, "middle", {"seen": 2})
    for _ in range(3):
        whole.train_batch()
    parts = make()
    assert parts.load_checkpoint(tmp_path, "middle")[1] == {"seen": 2}
    for _ in range(3):
        parts.train_batch()
    assert same(state(parts), state(whole))


def test_another_division_into_micro_batches_may_load(tmp_path):
    engine = make()
    engine.fit(epochs=1, verbose=0)
    engine.save_checkpoint(tmp_path)
    other = make({**CONFIG, "gradient_accumulation_steps": 8})
    other.load_checkpoint(tmp_path)
    assert other.global_steps == 4 and other.get_lr() == engine.get_lr()
    for one, two in zip(engine.model.variables, other.model.variables):
        np.testing.assert_array_equal(one.numpy(), two.numpy())


def test_where_there_is_none_training_begins(tmp_path):
    with pytest.warns(UserWarning, match="has no checkpoint: training begins"):
        assert make().load_checkpoint(tmp_path / "new") == (None, {})


def test_a_tag_that_is_not_there_names_those_that_are(tmp_path):
    engine = make()
    engine.save_checkpoint(tmp_path, "a")
    with pytest.raises(CheckpointError, match="no checkpoint 'b'. There are: a."):
        engine.load_checkpoint(tmp_path, "b")


@pytest.mark.parametrize("tag", ["", "../up", ".hidden", "latest"])
def test_a_tag_must_name_a_folder(tmp_path, tag):
    with pytest.raises(CheckpointError, match="A tag is the name of a folder"):
        make().save_checkpoint(tmp_path, tag)


def test_client_state_must_be_json(tmp_path):
    with pytest.raises(
        CheckpointError, match="client_state must be what JSON can hold"
    ):
        make().save_checkpoint(tmp_path, client_state={"array": X})


def test_between_micro_batches_nothing_can_be_saved(tmp_path):
    engine = make()
    engine.model.train_on_batch(X[:4], Y[:4])
    with pytest.raises(CheckpointError, match="1 of the 4 micro-batches"):
        engine.save_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "other, told",
    [
        (lambda: make(units=9), r"sequential.*/kernel has the shape \(4, 8\)"),
        (lambda: make(VARIANTS["keras"]), "of the optimizer GSNRAdam, the job's is"),
        (lambda: make(VARIANTS["fp16"]), "arrays of the optimizer, the job has"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path, other, told):
    make().save_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=told):
        other().load_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["state.h5", "ranks.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "bit", "gone"])
def test_a_damaged_file_is_named(tmp_path, name, damage):
    engine = make()
    engine.save_checkpoint(tmp_path, "a")
    path = tmp_path / "a" / name
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "bit":
        data[len(data) // 2 if name != "manifest.json" else 0] ^= 1
        path.write_bytes(data)
    else:
        path.unlink()
    before = state(engine)
    with pytest.raises(CheckpointError, match=rf"a/{name} is (damaged|missing)"):
        engine.load_checkpoint(tmp_path)
    assert same(state(engine), before)


def killed_at(call, folder, arrays):
    """Whether writing was killed at its `call`-th touch of the file system."""
    pid = os.fork()
    if pid == 0:
        left = [call]

        def deadly(real):
            def touch(*args, **kwargs):
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return real(*args, **kwargs)

            return touch

        for name in ("fsync", "rename", "replace", "open"):
            setattr(os, name, deadly(getattr(os, name)))
        try:
            checkpoint_files.write(folder, "tag", arrays, [], {"which": "new"})
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_killed_at_any_moment_the_old_or_the_new_checkpoint_is_whole(tmp_path):
    old = {"weights": [np.zeros(100)], "optimizer": []}
    new = {"weights": [np.ones(100)], "optimizer": []}
    seen, call, killed = [], 0, True
    while killed:
        folder = tmp_path / str(call)
        checkpoint_files.write(folder, "tag", old, [], {"which": "old"})
        killed = killed_at(call, folder, new)
        about, arrays, _ = checkpoint_files.read(checkpoint_files.locate(folder))
        expected = old if about["which"] == "old" else new
        np.testing.assert_array_equal(arrays["weights"][0], expected["weights"][0])
        seen.append(about["which"])
        # What the crash left behind does not disturb the next one.
        checkpoint_files.write(folder, "tag", new, [], {"which": "new"})
        assert sorted(p.name for p in folder.iterdir()) == ["latest", "tag"]
        call += 1
    assert call > 10 and seen[0] == "old" and seen[-1] == "new"
    assert seen == sorted(seen, reverse=True)


def test_the_files_are_as_documented(tmp_path):
    engine = make()
    engine.save_checkpoint(tmp_path, "a", {"x": 1})
    assert (tmp_path / "latest").read_text() == "a\n"
    names = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert names == ["manifest.json", "ranks.json", "state.h5"]
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["format"] == 1 and manifest["client_state"] == {"x": 1}
    assert manifest["counters"] == {"global_steps": 0, "global_samples": 0}


def test_a_failure_on_one_rank_is_told_by_all():
    class Ranks:
        def gather(self, value):
            return ["disk full", value]

    with pytest.raises(CheckpointError, match="^rank 0: disk full$"):
        checkpoint.together(Ranks(), lambda: 1)
