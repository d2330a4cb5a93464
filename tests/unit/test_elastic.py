"""`ElasticState` in one process: what it refuses; nothing is lost or repeated."""

import argparse

import keras
import numpy as np
import pytest
import tensorflow as tf

import gsnr_tf

X = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
Y = X @ np.array([[1.0], [-2.0], [0.5]], "float32")
BATCHES = 8


def compiled(optimizer=None, **options):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.BatchNormalization(), keras.layers.Dense(1)]
    )
    optimizer = optimizer or gsnr_tf.GSNRAdam(0.1, gradient_accumulation_steps=2)
    model.compile(optimizer=optimizer, loss="mse", **options)
    return model


def data(known):
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    return dataset if known else dataset.filter(lambda x, y: True)


def state_of(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [variable.numpy() for variable in variables]


class StopOnce(keras.callbacks.Callback):
    """Stands for a rank that dies, after so many batches in all."""

    class Died(Exception):
        pass

    def __init__(self, after):
        super().__init__()
        self.left = after

    def on_train_batch_begin(self, batch, logs=None):
        if self.left == 0:
            self.left = -1
            raise self.Died
        self.left -= 1


# At the end of an epoch, a dataset of unknown size has one more step, without data.
@pytest.mark.parametrize(
    ("after", "known"),
    [(1, True), (BATCHES, True), (BATCHES, False), (BATCHES + 7, False)],
)
def test_a_training_that_is_interrupted_ends_like_one_that_is_not(after, known):
    whole = compiled()
    whole.fit(data(True), epochs=3, verbose=0)

    model = compiled()
    state = gsnr_tf.ElasticState(model, commit_batches=3)
    stop = StopOnce(after)
    seen = []

    @gsnr_tf.elastic_run
    def train(state):
        seen.append(state.epoch * BATCHES + state.batch)
        state.fit(data(known), 3, callbacks=[stop], verbose=0)

    with pytest.raises(StopOnce.Died):
        train(state)
    # A new start from the last commit, as after the death of another rank.
    state.restore()
    train(state)
    for value, expected in zip(state_of(model), state_of(whole)):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    assert (state.epoch, state.batch) == (3, 0)
    # Commits wait for the end of a window of two: after 4 batches, and 8.
    assert seen == [0, after // 4 * 4]


def test_the_last_batch_of_an_epoch_may_be_a_commit():
    """An epoch of unknown size is found to have no batch left."""
    model = compiled()
    state = gsnr_tf.ElasticState(model)
    state.sync()
    state.epoch, state.batch = 1, BATCHES
    state.fit(data(False), 2, verbose=0)
    assert (state.epoch, state.batch) == (2, 0)
    assert int(model.optimizer.iterations) == 0


def test_steps_per_epoch_counts_those_that_were_done():
    model = compiled()
    state = gsnr_tf.ElasticState(model)
    state.sync()
    state.epoch, state.batch = 1, 2
    state.fit(data(True).repeat(), 3, steps_per_epoch=6, verbose=0)
    assert int(model.optimizer._iterations) == 4 + 6


def train_with(state, epochs, callbacks=()):
    @gsnr_tf.elastic_run
    def train(state):
        state.fit(data(True), epochs, callbacks=list(callbacks), verbose=0)

    train(state)


def test_a_new_start_goes_on_from_the_last_commit_on_disk(tmp_path, capfd):
    whole = compiled()
    whole.fit(data(True), epochs=3, verbose=0)

    options = {"commit_batches": 3, "folder": tmp_path / "commits"}
    with pytest.raises(StopOnce.Died):
        train_with(gsnr_tf.ElasticState(compiled(), **options), 3, [StopOnce(BATCHES + 7)])
    assert "There is no commit in" in capfd.readouterr().err
    # Two of the three that there were: after 4 batches, an epoch, and 4 of the next.
    found = sorted(path.name for path in (tmp_path / "commits").glob("commit-*"))
    assert found == ["commit-4", "commit-6"]

    # As in another process: nothing is known of the first.
    model, seen = compiled(), []
    begin = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: seen.append((state.epoch, state.batch))
    )
    state = gsnr_tf.ElasticState(model, **options)
    train_with(state, 3, [begin])
    assert seen[0] == (1, 4)
    assert "Goes on from" in capfd.readouterr().err
    for value, expected in zip(state_of(model), state_of(whole)):
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
    assert (state.epoch, state.batch) == (3, 0)


def test_of_several_commits_one_is_saved(tmp_path):
    state = gsnr_tf.ElasticState(compiled(), 2, tmp_path, save_commits=3)
    train_with(state, 1)
    # Four commits by batches, the last of which is the epoch's end, and that.
    assert [path.name for path in tmp_path.glob("commit-*")] == ["commit-3"]


def test_a_disk_that_is_full_costs_the_commit_on_disk_alone(tmp_path, monkeypatch):
    state = gsnr_tf.ElasticState(compiled(), 4, tmp_path)
    state.sync()
    state.batch = 2
    state.commit()
    monkeypatch.setattr("shutil.disk_usage", lambda path: argparse.Namespace(free=100))
    state.batch = 4
    with pytest.warns(UserWarning, match="This commit is in memory alone: .* no room"):
        state.commit()
    assert state._saved[0] == (0, 4)
    again = gsnr_tf.ElasticState(compiled(), 4, tmp_path)
    again.sync()
    assert again.batch == 2


def test_a_commit_that_is_damaged_is_no_commit(tmp_path):
    state = gsnr_tf.ElasticState(compiled(), 4, tmp_path)
    state.sync()
    state.commit()
    path = tmp_path / "commit-0" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    model = compiled()
    before = state_of(model)
    with pytest.raises(gsnr_tf.resilience.CheckpointError, match="state.safetensors"):
        gsnr_tf.ElasticState(model, 4, tmp_path).sync()
    for value, expected in zip(state_of(model), before):
        np.testing.assert_array_equal(value, expected)


def test_what_cannot_be_kept_is_refused():
    with pytest.raises(TypeError, match="Adam trains every rank on its own"):
        gsnr_tf.ElasticState(compiled(keras.optimizers.Adam(0.1)))
    with pytest.raises(ValueError, match="compiled and built"):
        gsnr_tf.ElasticState(keras.Sequential([keras.layers.Dense(1)]))
    with pytest.raises(ValueError, match="Received: 0"):
        gsnr_tf.ElasticState(compiled(), commit_batches=0)
    with pytest.raises(ValueError, match="save_commits must be at least 1. Received: 0"):
        gsnr_tf.ElasticState(compiled(), folder="f", save_commits=0)


def test_a_wrapped_optimizer_is_taken():
    distributed = gsnr_tf.DistributedOptimizer(keras.optimizers.Adam(0.1))
    assert gsnr_tf.ElasticState(compiled(distributed))
    scaled = gsnr_tf.LossScaleOptimizer(gsnr_tf.GSNRAdam(0.1))
    assert gsnr_tf.ElasticState(compiled(scaled))
