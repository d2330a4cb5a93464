"""The engine where the batch grows with the noise."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import gsnr_tf
from gsnr_tf.callbacks import BatchSizeRamp
from gsnr_tf.monitor.run import Run
from gsnr_tf.resilience import CheckpointError
from gsnr_tf.schedules import WarmupDecayLR

CONFIG = {
    "train_batch_size": 8,
    "train_micro_batch_size_per_gpu": 4,
    "optimizer": {"type": "GSNRSGD", "params": {"lr": 0.01}},
    "steps_per_print": 1,
    "gsnr": {"batch_ramp": {"max_train_batch_size": 32, "every": 1}},
}
# Nothing but noise: after every 5 updates there is room for twice the batch.
SIZES = [8] * 5 + [16] * 2
rng = np.random.default_rng(0)
X = rng.normal(size=(sum(SIZES), 3)).astype("float32")
Y = rng.normal(size=(sum(SIZES), 1)).astype("float32")
SCHEDULER = {
    "type": "WarmupDecayLR",
    "params": {"warmup_num_steps": 3, "total_num_steps": 20, "warmup_type": "linear"},
}
pytestmark = pytest.mark.filterwarnings("ignore:.*samples an update")


def network():
    keras.utils.set_random_seed(1)
    zeros = keras.layers.Dense(1, kernel_initializer="zeros")
    return keras.Sequential([keras.Input((3,)), zeros])


def make(data=(X, Y), **changes):
    config = {**CONFIG, **changes}
    return gsnr_tf.initialize(network(), config, "mse", training_data=data, run_eagerly=True)


def printed(capsys, name="batch"):
    """Numbers of that name in the lines of `steps_per_print`."""
    lines = capsys.readouterr().out.splitlines()
    parts = [dict(part.split("=") for part in line.split(", ")) for line in lines]
    return [float(part[name]) for part in parts]


def dataset(number=len(X)):
    return tf.data.Dataset.from_tensor_slices((X[:number], Y[:number]))


def test_fit_is_keras_fit_with_the_callback(capsys):
    engine = make()
    engine.fit(dataset(), verbose=0)
    assert printed(capsys) == SIZES
    model = network()
    optimizer = gsnr_tf.GSNRSGD(0.01, gradient_accumulation_steps=2)
    model.compile(optimizer, "mse", run_eagerly=True)
    ramp = BatchSizeRamp(8, every=1)
    model.fit(dataset().batch(4), shuffle=False, verbose=0, callbacks=[ramp])
    assert [done["accumulation"] for done in ramp.history] == [4]
    assert engine.get_lr() == [float(optimizer.learning_rate)]
    for one, other in zip(engine.model.get_weights(), model.get_weights()):
        np.testing.assert_array_equal(one, other)


def test_the_last_update_of_an_epoch_takes_what_is_left(capsys):
    engine = make()
    # 8 times 8 and a rest, which is left out.
    engine.fit(dataset(67), epochs=2, verbose=0)
    sizes = printed(capsys)
    assert sizes == [*SIZES[:6], 8, 16, 16, 16, 16]
    assert engine.global_samples == sum(sizes) == 2 * 64
    assert (engine.global_steps, engine.train_batch_size()) == (len(sizes), 32)
    assert engine.gradient_accumulation_steps() == 8


def test_train_batch_takes_full_batches_across_epochs(tmp_path, capsys):
    place = {"enabled": True, "output_path": str(tmp_path), "job_name": "job"}
    engine = make((X[:64], Y[:64]), csv_monitor=place)
    sizes = []
    for _ in SIZES:
        sizes.append(engine.train_batch_size())
        engine.train_batch()
    assert sizes == printed(capsys) == SIZES
    assert engine.global_samples == sum(SIZES)
    rows = (tmp_path / "job" / "events.csv").read_text().splitlines()
    told = [row.split(",") for row in rows if "train_batch_size" in row]
    found = [(int(examples), float(size)) for examples, _, size in told]
    assert found == list(zip(np.cumsum(SIZES), SIZES))


def test_a_batch_of_ones_own_must_have_grown_too():
    engine = make(data=None)
    for size in SIZES[:5]:
        engine.train_batch((X[:size], Y[:size]))
    assert engine.train_batch_size() == 16
    with pytest.raises(ValueError, match="4 × 4 = 16 rows .* Received: 8 rows"):
        engine.train_batch((X[:8], Y[:8]))


def test_every_update_sees_examples_that_none_before_it_saw():
    """In one epoch, whatever the batches: the ramp moves on in the same order."""
    engine, seen = make(), []
    compute = engine.model.compute_loss

    def see(x, *args, **kwargs):
        seen.extend(x.numpy()[:, 0])
        return compute(x, *args, **kwargs)

    engine.model.compute_loss = see
    for _ in SIZES:
        engine.train_batch()
    assert sorted(seen) == sorted(X[:, 0])


def state(engine):
    variables = [*engine.model.variables, *engine.optimizer.variables]
    # Counted from the last change of the batch, or from a checkpoint: the sum is the same.
    variables = [v for v in variables if "schedule_progress" not in v.path]
    inner = getattr(engine.optimizer, "inner_optimizer", engine.optimizer)
    counters = [engine.get_lr()[0], engine.global_steps, engine.global_samples]
    counters += [int(inner.schedule_step), engine.train_batch_size()]
    return [v.numpy() for v in variables] + counters


def assert_same(one, other):
    for mine, yours in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine, yours)


@pytest.mark.parametrize("scheduler", [None, SCHEDULER], ids=["no scheduler", "scheduler"])
def test_a_job_resumes_in_mid_ramp_to_the_bit(tmp_path, scheduler):
    """After 6 updates: 1 of the 5 that come before the second doubling."""
    changes = {"fp16": {"enabled": True, "initial_scale_power": 4}, "scheduler": scheduler}
    whole = make(**changes)
    for _ in range(6):
        whole.train_batch()
    whole.save_checkpoint(tmp_path)
    saved = state(whole)
    for _ in range(4):
        whole.train_batch()
    after = state(whole)
    assert (saved[-1], after[-1]) == (16, 32)
    # In another process, and back from where the same one has been.
    for engine in (make(**changes), whole):
        engine.load_checkpoint(tmp_path)
        assert_same(state(engine), saved)
        for _ in range(4):
            engine.train_batch()
        assert_same(state(engine), after)


def rates(engine, updates):
    """The learning rate of each update, and what all of them learn."""
    found = []
    for _ in range(updates):
        found.append(engine.get_lr()[0])
        engine.train_batch()
    return found, engine.model.get_weights()


def test_a_scheduler_is_as_without_a_ramp_until_the_batch_grows(capsys):
    """Updates that are skipped, as the first ones here, do not move it on."""
    changes = {
        "scheduler": SCHEDULER,
        "fp16": {"enabled": True, "initial_scale_power": 127, "hysteresis": 1},
    }
    plain = make(gsnr={}, **changes)
    never = {"max_train_batch_size": 32, "share": 1e-9}
    ramped = make(gsnr={"batch_ramp": never}, **changes)
    (found, learned), told = rates(plain, 8), capsys.readouterr().out
    (same, learned_too), told_too = rates(ramped, 8), capsys.readouterr().out
    assert 0 < plain.skipped_steps < 6 and found.count(0.0) > 1
    assert found == same and max(found) > 0
    assert_same(learned, learned_too)
    lines, lines_too = (re.findall("step=.*loss", text) for text in (told, told_too))
    assert len(lines) == 8 and lines == lines_too


def test_a_scheduler_counts_examples_and_the_ramp_multiplies(tmp_path):
    engine = make(scheduler=SCHEDULER)
    schedule = WarmupDecayLR(**SCHEDULER["params"])
    found, _ = rates(engine, len(SIZES))
    before = np.cumsum([0, *SIZES[:-1]])
    expected = [(size / 8) ** 0.5 * float(schedule(done // 8)) for size, done in zip(SIZES, before)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # On other micro-batches too.
    engine.save_checkpoint(tmp_path)
    other = make(scheduler=SCHEDULER, train_micro_batch_size_per_gpu=2)
    other.load_checkpoint(tmp_path)
    assert other.get_lr() == engine.get_lr()
    np.testing.assert_allclose(engine.get_lr(), 2**0.5 * float(schedule(9)), rtol=1e-6)


def test_another_division_goes_on_with_the_batch_that_was_reached(tmp_path):
    engine = make()
    for _ in range(5):
        engine.train_batch()
    engine.save_checkpoint(tmp_path)
    other = make(train_micro_batch_size_per_gpu=2)
    other.load_checkpoint(tmp_path)
    assert (other.train_batch_size(), other.gradient_accumulation_steps()) == (16, 8)
    assert other.get_lr() == engine.get_lr() == pytest.approx([0.01 * 2**0.5])
    other.train_batch()
    assert other.global_samples == 56
    third = make(train_batch_size=12, train_micro_batch_size_per_gpu=3)
    with pytest.raises(CheckpointError, match="reached train_batch_size=16, which is"):
        third.load_checkpoint(tmp_path)


def test_what_makes_its_own_batches_cannot_grow():
    class Ready(keras.utils.PyDataset):
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return X[2 * index : 2 * index + 2], Y[2 * index : 2 * index + 2]

    with pytest.raises(ValueError, match="makes the micro-batches. Received: Ready"):
        make(data=None).fit(Ready(), verbose=0)


def test_a_record_is_made_on_the_way(tmp_path):
    """The monitor's records are the ramp's, and their axis the examples so far."""
    ramp = {"max_train_batch_size": 32}
    record = {"monitor_interval": 1, "monitor_path": str(tmp_path)}
    engine = make(gsnr={"batch_ramp": ramp, **record})
    engine.fit(dataset(), verbose=0)
    assert engine.train_batch_size() == 16
    examples, sizes = Run(tmp_path).series("batch/examples")
    assert sizes.tolist() == SIZES
    assert examples.tolist() == np.cumsum(SIZES).tolist()


def test_an_older_checkpoint_goes_on_at_its_place_in_the_schedule(tmp_path):
    """Version 0.1 set the rate from outside: the optimizer it saved had a constant one, as
    here, and the counters said how many examples the scheduler had seen."""
    older = make()
    for _ in range(6):
        older.train_batch()
    older.save_checkpoint(tmp_path)
    engine = make(scheduler=SCHEDULER)
    with pytest.warns(UserWarning, match="the job has a schedule: the job's holds"):
        engine.load_checkpoint(tmp_path)
    schedule = WarmupDecayLR(**SCHEDULER["params"])
    assert engine.train_batch_size() == 16
    expected = 2**0.5 * float(schedule(5 + 2))
    assert engine.get_lr() == [pytest.approx(expected, rel=1e-6)]
