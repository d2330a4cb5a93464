"""Checkpoints: exact continuation, and what a crash or a damaged file does to them."""

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
import safetensors

import gsnr_tf
from gsnr_tf.resilience import (
    CheckpointError,
    array_file,
    checkpoint,
    checkpoint_files,
    checkpoint_read,
    checkpoint_write,
    folder_lock,
)

FILES = ["state.safetensors", "ranks.json", "manifest.json", "SHA256SUMS"]
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
    return gsnr_tf.initialize(model, config, "mse", training_data=(X, Y), run_eagerly=not traced)


def state(engine):
    variables = [*engine.model.variables, *engine.optimizer.variables]
    counters = [engine.global_steps, engine.global_samples, engine.skipped_steps]
    return [v.numpy() for v in variables] + counters


def same(one, other):
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other))


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
    files = [(tmp_path / f"global_step{n}" / "state.safetensors").read_bytes() for n in (4, 8)]
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


@pytest.mark.parametrize(
    "tag", ["", "../up", ".hidden", "latest", "/tmp", "a\\b", "a\0b", "a" * 201]
)
def test_a_tag_must_name_a_folder(tmp_path, tag):
    engine = make()
    told = "A tag is the name of a folder"
    with pytest.raises(CheckpointError, match=told):
        engine.save_checkpoint(tmp_path, tag)
    with pytest.raises(CheckpointError, match=told):
        engine.load_checkpoint(tmp_path, tag)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tag", ["../up", "/tmp", "", "a/../../b"])
def test_latest_cannot_lead_out_of_the_folder(tmp_path, tag):
    engine = make()
    engine.save_checkpoint(tmp_path / "folder", "a")
    shutil.copytree(tmp_path / "folder" / "a", tmp_path / "up")
    (tmp_path / "folder" / "latest").write_text(tag)
    with pytest.raises(CheckpointError, match="A tag is the name of a folder"):
        engine.load_checkpoint(tmp_path / "folder")


def test_without_latest_nothing_begins_beside_checkpoints(tmp_path):
    engine = make()
    for tag in ("global_step9", "global_step10"):
        engine.save_checkpoint(tmp_path, tag)
    (tmp_path / "latest").unlink()
    with pytest.raises(CheckpointError, match="no file `latest`.*: global_step9, global_step10."):
        engine.load_checkpoint(tmp_path)


def test_latest_that_names_nothing_lists_the_tags(tmp_path):
    engine = make()
    engine.save_checkpoint(tmp_path, "a")
    (tmp_path / "latest").write_text("b")
    with pytest.raises(
        CheckpointError, match="latest names .* 'b', which is not there. There are: a."
    ):
        engine.load_checkpoint(tmp_path)
    (tmp_path / "latest").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="cannot be read: .*decode byte 0xff"):
        engine.load_checkpoint(tmp_path)


@pytest.mark.parametrize("latest", [True, False])
def test_checkpoints_of_deepspeed_are_named_and_kept(tmp_path, latest):
    theirs = tmp_path / "global_step0"
    theirs.mkdir()
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        (theirs / name).write_bytes(b"PK")
    if latest:
        (tmp_path / "latest").write_text("global_step0")
    engine = make()
    told = "mp_rank_00_model_states.pt, which DeepSpeed writes"
    with pytest.raises(CheckpointError, match=told):
        engine.load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=f"is not replaced: .*{told}"):
        engine.save_checkpoint(tmp_path)
    assert len(list(theirs.iterdir())) == 2


def test_a_checkpoint_given_as_the_folder_is_told(tmp_path):
    engine = make()
    engine.save_checkpoint(tmp_path, "a")
    with pytest.raises(CheckpointError, match="itself a checkpoint.*tag='a'"):
        engine.load_checkpoint(tmp_path / "a")


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("1")
    with pytest.raises(CheckpointError, match="no checkpoint of this package"):
        make().save_checkpoint(tmp_path, "thesis")
    assert (tmp_path / "thesis" / "chapter").read_text() == "1"


def test_client_state_must_be_json(tmp_path):
    with pytest.raises(CheckpointError, match="client_state must be what JSON can hold"):
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


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "bit", "gone"])
def test_a_damaged_file_is_named(tmp_path, name, damage):
    engine = make()
    engine.save_checkpoint(tmp_path, "a")
    path = tmp_path / "a" / name
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "bit":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.unlink()
    before = state(engine)
    with pytest.raises(CheckpointError, match=rf"a/{name}.* is (damaged|missing)"):
        engine.load_checkpoint(tmp_path)
    assert same(state(engine), before)


def arrays_of(value):
    array = array_file.Array("weights/x", value.dtype, value.shape, lambda: value)
    return {"weights": [array], "optimizer": []}


def contents(folder):
    return sorted(p.name for p in folder.iterdir())


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

        for name in ("fsync", "rename", "replace", "open", "mkdir"):
            setattr(os, name, deadly(getattr(os, name)))
        checkpoint_write.open = deadly(open)
        try:
            checkpoint_write.write(folder, "tag", arrays, [], {"which": "new"})
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("before", [True, False])
def test_killed_at_any_moment_the_old_or_the_new_checkpoint_is_whole(tmp_path, before):
    old, new = np.zeros(100), np.ones(100)
    seen, call, killed = [], 0, True
    while killed:
        folder = tmp_path / str(call)
        if before:
            checkpoint_write.write(folder, "tag", arrays_of(old), [], {"which": "old"})
            folder_lock.release(folder)
        killed = killed_at(call, folder, arrays_of(new))
        path = checkpoint_files.locate(folder)
        assert path or not before
        which = None
        if path:
            with checkpoint_read.read(path) as stored:
                which = stored.about["which"]
                found = stored.arrays["weights"][0].value()
            np.testing.assert_array_equal(found, old if which == "old" else new)
        seen.append(which)
        # What the crash left behind does not disturb the next one.
        checkpoint_write.write(folder, "tag", arrays_of(new), [], {"which": "new"})
        assert contents(folder) == [".lock", "latest", "tag"]
        call += 1
    first = "old" if before else None
    assert call > 15 and set(seen) == {first, "new"}
    assert seen == [first] * seen.count(first) + ["new"] * seen.count("new")


def test_the_leftovers_of_killed_jobs_are_removed_and_what_they_moved_is_put_back(
    tmp_path,
):
    engine = make()
    engine.save_checkpoint(tmp_path, "a")
    engine.save_checkpoint(tmp_path, "b")
    (tmp_path / ".c.writing").mkdir()
    (tmp_path / ".c.writing" / "state.safetensors").write_bytes(b"half")
    (tmp_path / "a").rename(tmp_path / ".a.previous")
    shutil.copytree(tmp_path / "b", tmp_path / ".b.previous")
    assert engine.load_checkpoint(tmp_path, "a")[0] == f"{tmp_path}/.a.previous"
    engine.save_checkpoint(tmp_path, "d")
    assert contents(tmp_path) == [".lock", "a", "b", "d", "latest"]


# ---- disks and other jobs
# ------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one MiB, or `None` where one may not be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", folder]
    mounted = shutil.which("mount") and not subprocess.run(mount).returncode
    yield folder if mounted else None
    folder_lock.release(folder)
    if mounted:
        subprocess.run(["umount", folder], check=True)


def many(count, size, fill):
    """Arrays as small and many as those that HDF5 dies of."""
    value = np.full(size, fill, "float32")
    return {
        "weights": [
            array_file.Array(f"weights/{i}", value.dtype, value.shape, lambda: value)
            for i in range(count)
        ],
        "optimizer": [],
    }


def check_still_there(folder, fill):
    assert contents(folder) == [".lock", "latest", "old"]
    with checkpoint_read.read(checkpoint_files.locate(folder)) as stored:
        assert stored.path.name == "old"
        assert all((a.value() == fill).all() for a in stored.arrays["weights"])


@pytest.mark.parametrize("tag", ["new", "old"])
@pytest.mark.parametrize("known", [True, False])
def test_a_full_disk_is_an_error_and_spoils_nothing(small_disk, monkeypatch, tag, known):
    if small_disk is None:
        pytest.skip("a file system may be mounted by root alone")
    checkpoint_write.write(small_disk, "old", many(2000, 50, 1), [], {})
    if not known:
        # As where a quota or another job's files come between.
        room = shutil._ntuple_diskusage(10**9, 0, 10**9)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: room)
    told = "has no room" if known else "cannot take the checkpoint.*No space left"
    with pytest.raises(CheckpointError, match=rf"(?s)disk {told}.*needs [67]\d\d,\d{{3}}"):
        checkpoint_write.write(small_disk, tag, many(2000, 50, 2), [], {})
    check_still_there(small_disk, 1)


def test_wherever_the_disk_fails_nothing_is_spoiled(tmp_path, monkeypatch):
    """Each write, flush and rename fails once, as on a disk that is full or gone."""
    checkpoint_write.write(tmp_path, "old", many(3, 4, 1), [], {})
    left = [0]

    def failing(real):
        def touch(*args, **kwargs):
            left[0] -= 1
            if not left[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **kwargs)

        return touch

    call = refused = 0
    while left[0] <= 0:
        call += 1
        left[0] = call
        with monkeypatch.context() as patch:
            for name in ("fsync", "rename", "replace", "open", "mkdir"):
                patch.setattr(os, name, failing(getattr(os, name)))
            patch.setattr(checkpoint_write, "open", failing(open), raising=False)
            try:
                checkpoint_write.write(tmp_path, "old", many(3, 4, 1), [], {})
            except CheckpointError as error:
                refused += 1
                assert "No space left" in str(error) and " are free" in str(error)
        with checkpoint_read.read(checkpoint_files.locate(tmp_path)) as stored:
            assert (stored.arrays["weights"][2].value() == 1).all()
    assert refused > 12
    checkpoint_write.write(tmp_path, "old", many(3, 4, 1), [], {})
    check_still_there(tmp_path, 1)


def test_arrays_are_taken_one_at_a_time(tmp_path):
    alive = [0, 0]

    class Counted(np.ndarray):
        def __array_finalize__(self, base):
            alive[0] += 1
            alive[1] = max(alive)

        def __del__(self):
            alive[0] -= 1

    def value():
        return np.zeros(1000).view(Counted)

    group = [
        array_file.Array(f"weights/{i}", np.dtype("float64"), (1000,), value) for i in range(50)
    ]
    checkpoint_write.write(tmp_path, "a", {"weights": group, "optimizer": []}, [], {})
    assert 0 < alive[1] < 10


HOLD = """
import sys, pathlib
from gsnr_tf.resilience import folder_lock
assert folder_lock.acquire(pathlib.Path(sys.argv[1])) is None
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_job_is_refused_as_long_as_the_first_runs(tmp_path):
    engine = make()
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(gsnr_tf.__file__).parents[1],
    )
    try:
        assert other.stdout.readline() == "held\n"
        # What it is writing at the moment.
        (tmp_path / ".a.writing").mkdir()
        (tmp_path / ".latest.writing").write_text("a\n")
        told = f"Another job saves .* still runs: process {other.pid} on "
        with pytest.raises(CheckpointError, match=told):
            engine.save_checkpoint(tmp_path, "a")
        assert contents(tmp_path) == [".a.writing", ".latest.writing", ".lock"]
    finally:
        other.kill()
        other.wait()
        other.stdin.close()
        other.stdout.close()
    # The system took the lock back, though nothing in that process could.
    engine.save_checkpoint(tmp_path, "a")
    assert contents(tmp_path) == [".lock", "a", "latest"]
    assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_process_that_is_no_longer_rank_0_gives_the_folder_up(tmp_path, monkeypatch):
    engine = make()
    engine.save_checkpoint(tmp_path)
    assert folder_lock.holds(tmp_path)
    monkeypatch.setattr(checkpoint.comm, "rank", lambda: 1)
    engine.save_checkpoint(tmp_path)
    assert not folder_lock.holds(tmp_path)


def test_where_there_are_no_locks_this_is_told(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(folder_lock.fcntl, "lockf", none)
    with pytest.warns(UserWarning, match="has no locks"):
        make().save_checkpoint(tmp_path, "a")
    assert (tmp_path / "a").is_dir()


# ---- files
# ---------------------------------------------------------------------------


def test_the_library_reads_what_is_written_in_every_dtype(tmp_path):
    values = [
        np.arange(6).reshape(2, 3).astype(dtype) for dtype in sorted(array_file.DTYPES, key=str)
    ]
    values += [np.float32(3).reshape(()), np.zeros((0, 4), "float32")]
    group = [
        array_file.Array(f"weights/{i}", v.dtype, v.shape, lambda v=v: v)
        for i, v in enumerate(values)
    ]
    checkpoint_write.write(tmp_path, "a", {"weights": group, "optimizer": []}, [], {})
    with checkpoint_read.read(tmp_path / "a") as stored:
        for value, array in zip(values, stored.arrays["weights"], strict=True):
            found = array.value()
            assert found.dtype == value.dtype and found.shape == value.shape
            assert found.tobytes() == value.tobytes()
    file = (tmp_path / "a" / "state.safetensors").read_bytes()
    by_name = dict(safetensors.deserialize(file))
    for array, value in zip(group, values):
        theirs = by_name[array.name]
        assert theirs["shape"] == list(value.shape)
        assert bytes(theirs["data"]) == value.tobytes()


def test_bfloat16_weights_come_back_bit_for_bit(tmp_path):
    keras.config.set_dtype_policy("bfloat16")
    engine = make({**CONFIG, "optimizer": {"type": "Adam", "params": {"lr": 0.02}}})
    engine.save_checkpoint(tmp_path)
    with checkpoint_read.read(checkpoint_files.locate(tmp_path)) as stored:
        assert stored.arrays["weights"][0].dtype == ml_dtypes.bfloat16
    before = state(engine)
    for variable in engine.model.variables:
        variable.assign(variable + 1)
    engine.load_checkpoint(tmp_path)
    assert same(state(engine), before)


def test_the_files_are_as_documented(tmp_path):
    engine = make()
    engine.save_checkpoint(tmp_path, "a", {"x": 1})
    assert (tmp_path / "latest").read_text() == "a\n"
    assert contents(tmp_path) == [".lock", "a", "latest"]
    assert contents(tmp_path / "a") == sorted(FILES)
    sums = (tmp_path / "a" / "SHA256SUMS").read_text().splitlines()
    for line in sums:
        digest, name = line.split("  ")
        content = (tmp_path / "a" / name).read_bytes()
        assert digest == hashlib.sha256(content).hexdigest()
    assert len(sums) == 3
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert manifest["format"] == 2 and manifest["client_state"] == {"x": 1}
    assert manifest["counters"] == {"global_steps": 0, "global_samples": 0}


def test_a_failure_on_one_rank_is_told_by_all():
    class Ranks:
        def gather(self, value):
            return ["disk full", value]

    with pytest.raises(CheckpointError, match="^rank 0: disk full$"):
        checkpoint.together(Ranks(), lambda: 1)


# ---- format 1
# ------------------------------------------------------------------------


def as_format_1(path):
    """Makes of a checkpoint what earlier versions wrote."""
    with checkpoint_read.read(path) as stored, h5py.File(path / "state.h5", "w") as file:
        about = stored.about
        for group, arrays in stored.arrays.items():
            file.create_group(group)
            for index, array in enumerate(arrays):
                value = array.value()
                if value.dtype == ml_dtypes.bfloat16:
                    value = value.astype("float32")
                file[group][f"{index:06}"] = value
    paths = [array.name.removeprefix("weights/") for array in stored.arrays["weights"]]
    for name in ("state.safetensors", "SHA256SUMS", "manifest.json"):
        (path / name).unlink()
    files = {
        name: {
            "bytes": (path / name).stat().st_size,
            "sha256": hashlib.sha256((path / name).read_bytes()).hexdigest(),
        }
        for name in ("state.h5", "ranks.json")
    }
    kept = ("optimizer", "updates", "counters", "client_state")
    manifest = {"format": 1, "files": files, "paths": paths}
    manifest.update({key: about[key] for key in kept})
    (path / "manifest.json").write_text(json.dumps(manifest, indent=1))


@pytest.mark.parametrize("policy", ["float32", "bfloat16"])
def test_format_1_is_still_read(tmp_path, policy):
    keras.config.set_dtype_policy(policy)
    config = {**CONFIG, "optimizer": {"type": "Adam", "params": {"lr": 0.02}}}
    engine = make(config)
    engine.train_batch()
    engine.save_checkpoint(tmp_path, "a", {"x": 1})
    before = state(engine)
    as_format_1(tmp_path / "a")
    other = make(config)
    assert other.load_checkpoint(tmp_path) == (f"{tmp_path}/a", {"x": 1})
    assert same(state(other), before)
    data = bytearray((tmp_path / "a" / "state.h5").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a" / "state.h5").write_bytes(data)
    with pytest.raises(CheckpointError, match="a/state.h5 is damaged"):
        other.load_checkpoint(tmp_path)
