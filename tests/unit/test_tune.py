"""The search for sizes, with jobs that only say how fast they are."""

import itertools
import json

import pytest

from gsnr_tf.engine import ConfigError, read, tune, tune_trial
from gsnr_tf.engine.build import optimizer_arguments
from gsnr_tf.engine.tune import Result
from gsnr_tf.rules import registry


def config(train=64, optimizer="GSNRLamb", estimator="paper", **tuning):
    return read(
        {
            "train_batch_size": train,
            "optimizer": {"type": optimizer},
            "gsnr": {"estimator": estimator} if registry.of(optimizer) else {},
            "autotuning": {"enabled": True, **tuning},
        }
    )


def sizes(job, ranks):
    return tune.micro_batches(job, job.batch(ranks))


def test_micro_batches_double_and_keep_the_samples_that_the_estimator_wants():
    assert sizes(config(64), 1) == [1, 2, 4, 8]
    assert sizes(config(64), 4) == [1, 2, 4, 8]
    assert sizes(config(64), 16) == [1, 2, 4]
    assert sizes(config(64, "AdamW"), 4) == [1, 2, 4, 8, 16]
    assert sizes(config(64, estimator="robust"), 4) == [1, 2, 4, 8, 16]
    assert sizes(config(64, estimator="robust"), 1) == [1, 2, 4, 8, 16, 32]
    assert sizes(config(4), 1) == [1, 2]
    assert sizes(config(64, num_tuning_micro_batch_sizes=2), 1) == [4, 8]


def test_micro_batches_divide_the_training_batch():
    for train in (90, 91, 96, 360):
        found = sizes(config(train, "SGD"), 1)
        assert found[-1] == train and all(train % size == 0 for size in found)
        assert all(2 * a <= b for a, b in itertools.pairwise(found))


def searched(job, speeds, ranks=1):
    """Micro-batches that were tried, and the best."""
    told = []

    def run(changes):
        speed = speeds[changes["train_micro_batch_size_per_gpu"]]
        if speed is None:
            return Result(changes, failure="out of memory")
        return Result(changes, speed, 1)

    results = tune.search(job, ranks, run, told.append)
    assert told == results
    found = tune.best(results)
    tried = [r.changes["train_micro_batch_size_per_gpu"] for r in results]
    return tried, found and found.changes["train_micro_batch_size_per_gpu"]


def test_the_fastest_is_found():
    job = config(64, "SGD", num_tuning_micro_batch_sizes=7)
    rising = {1: 1, 2: 2, 4: 3, 8: 4, 16: 5, 32: 6, 64: 7}
    assert searched(job, rising) == ([1, 2, 4, 8, 16, 32, 64], 64)
    assert searched(job, {**rising, 8: None}) == ([1, 2, 4, 8], 4)
    # One slower trial may be chance.
    assert searched(job, {**rising, 4: 1.5, 8: 1.6}) == ([1, 2, 4, 8], 2)
    assert searched(job, {**rising, 4: 1.5})[1] == 64
    assert searched(job, {**rising, 1: None}) == ([1], None)


def with_slices(stage=2, optimizer="GSNRLamb"):
    return read(
        {
            "train_batch_size": 32,
            "optimizer": {"type": optimizer},
            "zero_optimization": {"stage": stage, "reduce_bucket_size": 1000},
            "autotuning": {"enabled": True, "num_tuning_micro_batch_sizes": 2},
        }
    )


def test_bucket_sizes_are_tried_with_the_fastest_micro_batch():
    """A job whose speed is that of its micro-batch over how far its buckets are off."""
    job, tried = with_slices(), []

    def run(changes):
        micro = changes["train_micro_batch_size_per_gpu"]
        bucket = changes.get("zero_optimization", {}).get("reduce_bucket_size", 1000)
        tried.append((micro, bucket))
        return Result(changes, (10 - micro) / (1 + abs(bucket - 2**20)), 1)

    found = tune.best(tune.search(job, 2, run, lambda result: None))
    assert tried[:2] == [(2, 1000), (4, 1000)]
    assert tried[2:] == [(2, 2**power) for power in (18, 20, 22, 24)]
    values = tune_trial.merged(job.model_dump(), found.changes)
    assert values["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 2**20}
    _, arguments = optimizer_arguments(read(values), read(values).batch(2))
    assert arguments["bucket_bytes"] == 2**22 and arguments["sharding"] == "slices"


def test_without_slices_there_are_no_buckets_to_try():
    for job, ranks in ((with_slices(), 1), (with_slices(stage=0), 2)):
        assert tune.buckets(job, job.batch(ranks)) == []


def trial_of(monkeypatch, changes):
    """The trial of a process that `gsnr-tf tune` has started."""
    for name, value in tune_trial.described(changes, "x").items():
        monkeypatch.setenv(name, value)
    return tune_trial.TuneTrial.of_environment()


def test_a_trial_has_the_batch_that_it_is_told(monkeypatch):
    told = trial_of(monkeypatch, {"train_batch_size": 8})
    gsnr = {"gamma": 0.5, "batch_ramp": {"max_train_batch_size": 16}}
    values = {"optimizer": {"type": "GSNRSGD"}, "gsnr": gsnr}
    found = read(values, changes=told.changes)
    assert found.train_batch_size == 8
    assert found.gsnr.batch_ramp is None and found.gsnr.gamma == 0.5
    assert "batch_ramp" in values["gsnr"]


def test_only_what_starts_the_engine_asks_whether_it_is_a_trial(monkeypatch):
    assert tune_trial.TuneTrial.of_environment() is None
    trial_of(monkeypatch, {"train_batch_size": 8})
    values = {"train_batch_size": 4, "optimizer": {"type": "SGD"}}
    assert read(values).train_batch_size == 4


def test_the_search_must_be_enabled():
    with pytest.raises(ConfigError, match='"autotuning": {"enabled": true}'):
        tune.search(config(enabled=False), 1, None, None)


def test_changes_reach_the_configuration_of_a_trial(monkeypatch):
    values = {
        "train_batch_size": 8,
        "gradient_accumulation_steps": 8,
        "optimizer": {"type": "SGD", "params": {"lr": 0.5}},
    }
    changes = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": None,
        "optimizer": {"type": "Adam"},
    }
    told = trial_of(monkeypatch, changes)
    for source in (values, read(values)):
        found = read(source, changes=told.changes)
        assert found.batch(1) == (8, 4, 2, 1)
        assert (found.optimizer.type, found.optimizer.params) == ("Adam", {"lr": 0.5})


JOB = """
import json, os, sys
if json.loads(os.environ["GSNR_TF_TRIAL"])["changes"][sys.argv[4]] == 32:
    raise MemoryError("too large")  # before TensorFlow takes its time
import gsnr_tf, keras, numpy as np
x = np.ones((64, 2), "float32")
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
engine = gsnr_tf.initialize(model, sys.argv[1], "mse", training_data=(x, x[:, :1]))
assert engine.train_micro_batch_size_per_gpu() == 16
engine.save_checkpoint("never")
engine.fit(epochs=int(sys.argv[3]), verbose=0)
"""


def test_trials_of_a_script_and_what_is_written(tmp_path, monkeypatch, capsys):
    from gsnr_tf import cli

    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.py").write_text(JOB)
    values = {
        "train_batch_size": 32,
        "optimizer": {"type": "SGD"},
        "autotuning": {"enabled": True, "num_tuning_micro_batch_sizes": 2},
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    command = [
        "tune",
        "config.json",
        "--np",
        "1",
        "job.py",
        "config.json",
        "--epochs",
        "9",
        "train_micro_batch_size_per_gpu",
    ]
    assert cli.main(command) == 0
    good, bad, _ = capsys.readouterr().out.splitlines()
    assert good.startswith("micro-batch 16: ") and " examples/s, " in good
    assert bad.startswith("micro-batch 32: failed: out of memory")
    found = read(tmp_path / "autotuning_results" / "config.json")
    assert found.batch(1) == (32, 16, 2, 1) and not found.autotuning.enabled
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    "code, output, told",
    [
        (137, "", "out of memory"),
        (
            1,
            "tensorflow...ResourceExhaustedError: OOM when allocating",
            "out of memory",
        ),
        (0, "", "too few updates"),
        (1, "Traceback\nValueError: no such file\n", "ValueError: no such file"),
        (3, "", "exit code 3"),
    ],
)
def test_reasons_are_told(code, output, told):
    assert told in tune._reason(code, output)
