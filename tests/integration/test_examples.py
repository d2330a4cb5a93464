"""The examples and the command line, run as a user runs them."""

import json
import re
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import gsnr_tf
from tests.processes import ROOT, horovodrun, python, run, run_together, workers

EXAMPLES = ROOT / "keras_examples"
MOVIELENS = str(EXAMPLES / "movielens_dlrm.py")
LOOP = str(EXAMPLES / "strategy_loop.py")
ENGINE = str(EXAMPLES / "movielens_engine.py")
REGRESSION = str(EXAMPLES / "linear_regression.py")
SECONDS = 240


def movielens(folder):
    """Ten updates, at a rate that ten updates stand; the tuned one is for fifty."""
    setting = ["--seeds", "2", "--epochs", "2", "--learning-rates", "0.03", "--l2", "0.001"]
    return [*setting, "--output", str(folder)]


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory):
    """What 2 ranks x 4 micro-batches printed, and their folder."""
    folder = tmp_path_factory.mktemp("two ranks")
    finished = run(horovodrun(2, MOVIELENS, *movielens(folder)), SECONDS)
    assert finished.code == 0, finished.output
    return finished.output, folder


def printed_by(rank, output):
    """The lines of one rank, without horovodrun's prefix."""
    prefix = f"[{rank}]<stdout>:"
    lines = [line for line in output.splitlines() if line.startswith(prefix)]
    return [line.removeprefix(prefix) for line in lines]


@pytest.mark.slow
def test_rank_0_alone_prints_progress_and_a_table_of_both_optimizers(on_two_ranks):
    output, folder = on_two_ranks
    lines = printed_by(0, output)
    assert printed_by(1, output) == []
    assert "batch 16,000 = 8 samples of 2,000 (2 ranks x 4 micro-batches)" in lines
    assert sum(bool(re.match(r" [12]/2 ", line)) for line in lines) == 2 * 2 * 2
    heading = next(i for i, line in enumerate(lines) if line.startswith("optimizer "))
    table = [line.split()[:3] for line in lines[heading + 1 : heading + 3]]
    assert table == [["gsnr-adam", "0.03", "0.001"], ["adam", "0.03", "0.001"]]
    # The difference comes after the table, and in words at its end.
    assert lines[heading + 3 : heading + 5] == [
        "", "gsnr-adam - adam, 2 paired seeds, 95 % t interval"
    ]  # fmt: skip
    assert re.match(r"test AUC {7}[+-]0\.\d{4}  \[[+-].*, [+-].*\]$", lines[heading + 5])
    assert re.match(r"gsnr-adam is (level|ahead|behind)", lines[heading + 7])
    assert lines[-1] == f"saved {folder}/results.json and {folder}/auc.png"


@pytest.mark.slow
def test_results_and_plot_are_saved(on_two_ranks):
    _, folder = on_two_ranks
    results = json.loads((folder / "results.json").read_text())
    assert results["settings"]["ranks"] == 2
    names = [one_run["optimizer"] for one_run in results["runs"]]
    assert names == ["gsnr-adam", "gsnr-adam", "adam", "adam"]
    for one_run in results["runs"]:
        assert [row["epoch"] for row in one_run["history"]] == [1, 2]
        first, last = one_run["history"]
        # Better than chance, and better with each epoch.
        assert 0.5 < first["test_auc"] < last["test_auc"] < 1
        assert last["test_auc"] < last["train_auc"]
        assert last["loss"] < first["loss"]
        assert one_run["l2"] == 0.001 and one_run["seconds"] > 0
    (found,) = results["differences"]
    reached = [one_run["history"][-1]["test_auc"] for one_run in results["runs"]]
    each = np.subtract(reached[:2], reached[2:])
    np.testing.assert_allclose(found["test_auc"]["each"], each)
    assert found["test_auc"]["low"] < each.mean() < found["test_auc"]["high"]
    picture = (folder / "auc.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(picture[at : at + 4], "big") for at in (16, 20))
    assert (width, height) == (2100, 600)


@pytest.mark.slow
def test_one_process_repeats_what_two_ranks_learned(on_two_ranks, tmp_path):
    """8 micro-batches are the same 8 samples as 2 ranks x 4 micro-batches.

    Sums of float32 in another order differ in the last bit, and after ten updates that
    exchanges a few pairs of a click and a non-click with almost equal scores. A pair of
    the test split is 4e-8 of its AUC; two were exchanged here, and 250 would pass.
    """
    _, folder = on_two_ranks
    alone = [*movielens(tmp_path), "--accumulation-steps", "8"]
    finished = run(python(MOVIELENS, *alone), SECONDS)
    assert finished.code == 0, finished.output
    curves = [
        [
            [row[split] for split in ("train_auc", "validation_auc", "test_auc")]
            for one_run in json.loads((place / "results.json").read_text())["runs"]
            for row in one_run["history"]
        ]
        for place in (folder, tmp_path)
    ]
    np.testing.assert_allclose(*curves, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "example", [MOVIELENS, LOOP, ENGINE, REGRESSION], ids=lambda path: Path(path).stem
)
def test_help_answers_without_importing_tensorflow(example):
    finished = run(python("-X", "importtime", example, "--help"), SECONDS)
    assert finished.code == 0, finished.output
    assert f"usage: {Path(example).name}" in finished.output
    imported = re.findall(r"^import time:.*\| +(\S+)$", finished.output, re.MULTILINE)
    assert "argparse" in imported
    assert not {"tensorflow", "keras", "numpy"} & set(imported)


@pytest.mark.slow
def test_a_task_file_trains_its_model_by_itself():
    setting = ["MaskedBytes", "--epochs", "0.01", "--batch-size", "64"]
    task = python(str(EXAMPLES / "language_task.py"), *setting, "--accumulation-steps", "2")
    finished = run(task, SECONDS)
    assert finished.code == 0, finished.output
    assert "of 64 examples = 2 samples" in finished.output
    losses = re.findall(r"^ *\d+%  loss ([\d.]+)  validation", finished.output, re.M)
    assert len(losses) == 10
    # Chance is ln 256 = 5.5; bytes that are frequent are soon guessed more often.
    assert float(losses[-1]) < 4.5 < float(losses[0])
    assert re.search(r"^test loss \(nats a byte\) [\d.]+$", finished.output, re.M)


@pytest.mark.slow
def test_the_engine_goes_on_where_two_ranks_stopped_with_one(tmp_path, monkeypatch, capsys):
    """The one is this process, where TensorFlow is there already."""
    setting = ["--checkpoints", str(tmp_path), "--epochs", "2"]
    together = run(horovodrun(2, ENGINE, *setting), SECONDS)
    assert together.code == 0, together.output
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "argv", [ENGINE, *setting[:-1], "3"])
    import movielens_engine

    movielens_engine.main(movielens_engine.parse_arguments())
    lines = printed_by(0, together.output) + capsys.readouterr().out.splitlines()
    steps = [line.split(",")[0] for line in lines if line.startswith("step=")]
    assert steps == ["step=5", "step=10", "step=15"]
    scores = [float(line.split()[-1]) for line in lines if line.startswith("test AUC")]
    assert len(scores) == 2 and 0.6 < scores[0] < scores[1] < 1
    assert (tmp_path / "latest").read_text() == "global_step15\n"


def epochs(output):
    """Loss, train AUC and GSNR of each epoch that was printed."""
    lines = re.findall(r"^epoch \d+ +(.*)$", output, re.MULTILINE)
    return [[float(number) for number in re.findall(r"\d+\.\d+", line)] for line in lines]


@pytest.mark.slow
def test_the_loop_learns_the_same_on_devices_and_on_workers():
    """2 replicas x 4 micro-batches, in one process and in two."""
    setting = ["--epochs", "1", "--accumulation-steps", "4"]
    devices = python(LOOP, "--strategy", "mirrored", "--replicas", "2", *setting)
    together = run(devices, SECONDS)
    assert together.code == 0, together.output

    commands = workers(2, LOOP, "--strategy", "multiworker", *setting)
    chief, other = run_together(commands, SECONDS)
    assert (chief.code, other.code) == (0, 0), chief.output + other.output

    for output in (together.output, chief.output):
        assert "2 replicas x 4 micro-batches = 8 samples an update" in output
    assert np.shape(epochs(together.output)) == (1, 3)
    # They differ by rounding, which at worst turns the last of the four digits.
    np.testing.assert_allclose(epochs(chief.output), epochs(together.output), atol=1.5e-4)
    assert epochs(other.output) == []


def command_line(*arguments):
    """`gsnr-tf`, or what that script does where the package is not installed."""
    script = Path(sys.executable).with_name("gsnr-tf")
    if script.exists():
        return [str(script), *arguments]
    return python("-c", "import gsnr_tf.cli as c; raise SystemExit(c.main())", *arguments)


def test_the_command_line_tells_versions():
    version = run(command_line("--version"), SECONDS)
    assert version.code == 0, version.output
    assert version.output.splitlines()[-1] == gsnr_tf.__version__

    environment = run(command_line("env"), SECONDS)
    assert environment.code == 0, environment.output
    lines = re.findall(r"^  (\S.*?)  +(\S.*?) *$", environment.output, re.MULTILINE)
    told = dict(lines)
    assert told["gsnr_tf"].startswith(f"{gsnr_tf.__version__} (")
    assert told["Keras"] == keras.__version__
    assert told["Horovod"] == "0.28.1"
    assert told["TensorFlow operations"] == f"for {tf.__version__}"
    assert "\nProblems\n" in environment.output


@pytest.mark.slow
def test_the_benchmark_compares_time_and_memory():
    setting = ["--np", "2", "--params", "20k", "--tensors", "4", "--rounds", "2"]
    bench = run(command_line("bench", "step", *setting), SECONDS)
    assert bench.code == 0, bench.output
    assert "2 ranks, 20,200 elements in 4 tensors" in bench.output
    time, memory = bench.output.split("state MB")
    names = [
        "allreduce, Keras lamb",
        "allreduce, fused lamb",
        "GSNR, sharding=none",
        "GSNR, all samples",
        "GSNR, slices",
    ]
    ratios = re.findall(r"^  (\S.*?) +[\d.]+ +([\d.]+)$", time, re.M)
    assert [name for name, _ in ratios] == names
    assert float(ratios[0][1]) == 1.0
    states = re.findall(r"^  (\S.*?) +([\d.]+) +[\d.]+ +[\d.]+$", memory, re.M)
    assert [name for name, _ in states] == names


def test_a_rank_that_dies_ends_the_job():
    """Within the time limit of `run`, which also looks for processes left behind.

    Horovod's own limit for ranks that wait in vain is longer, or not set.
    """
    program = Path(__file__).with_name("dying_rank.py")
    finished = run(horovodrun(2, str(program)), SECONDS)
    assert finished.code != 0, finished.output
    assert "rank 1 dies" in finished.output
    assert "Process 1 exit with status code 3." in finished.output, finished.output
    assert "an epoch ended" not in finished.output
