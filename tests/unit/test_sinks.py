"""Files that a run leaves: complete, readable after a kill, gone on with after a stop."""

import csv
import json
import math
import os
import signal
import time

import numpy as np
import pytest
import tensorflow as tf

from gsnr_tf.monitor.run import Run, write_info
from gsnr_tf.monitor.sinks import Histogram, PerVariable, Sinks, cut_after_last_line
from tests.processes import Process, python

INFO = {"variables": [{"path": "a/kernel", "shape": [2, 3]}, {"path": "b", "shape": []}]}
PATHS = ["a/kernel", "b"]


def write(folder, *steps, loss=lambda step: 1 / step):
    sinks = Sinks(folder)
    for step in steps:
        sinks.write_events(
            [
                ("train/loss", loss(step), step),
                ("variable/r_mean", PerVariable(PATHS, [step, math.nan]), step),
                ("histogram/r", Histogram([1.0, 2.0, 4.0], [step, 0]), step),
            ]
        )
    sinks.close()


def tensorboard_values(folder):
    """{tag: [(step, value)]} of all event files."""
    found = {}
    for path in sorted((folder / "tensorboard").iterdir()):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                kind = value.WhichOneof("value")
                number = getattr(value, kind)
                if kind == "tensor":
                    number = tf.make_ndarray(number).tolist()
                found.setdefault(value.tag, []).append((event.step, number))
    return found


def test_all_sinks_hold_the_same(tmp_path):
    write_info(tmp_path, INFO)
    write(tmp_path, 100, 200)
    run = Run(tmp_path)
    np.testing.assert_array_equal(run.series("train/loss"), [[100, 200], [0.01, 0.005]])
    _, matrix = run.of_variables("r_mean")
    np.testing.assert_array_equal(matrix, [[100, np.nan], [200, np.nan]])
    _steps, edges, counts = run.histograms("r")
    assert edges.tolist() == [1, 2, 4] and counts.tolist() == [[100, 0], [200, 0]]
    assert run.sizes.tolist() == [6, 1] and run.names("train") == ["train/loss"]

    rows = list(csv.DictReader((tmp_path / "events.csv").open()))
    assert [(r["step"], r["name"], float(r["value"])) for r in rows] == [
        ("100", "train/loss", 0.01),
        ("200", "train/loss", 0.005),
    ]

    board = tensorboard_values(tmp_path)
    assert board["train/loss"] == [(100, pytest.approx(0.01)), (200, pytest.approx(0.005))]
    assert board["variable/r_mean/a/kernel"] == [(100, 100), (200, 200)]
    assert board["histogram/r"][1] == (200, [[1, 2, 200], [2, 4, 0]])


def test_tensorboard_takes_them_for_scalars_and_histograms(tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write(tmp_path, 100)
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) >= {"train/loss", "variable/r_mean/b"}
    metadata = events.SummaryMetadata("histogram/r")
    assert metadata.plugin_data.plugin_name == "histograms"


def test_numbers_that_are_not_finite(tmp_path):
    write_info(tmp_path, INFO)
    write(tmp_path, 1, 2, loss=lambda step: [math.inf, math.nan][step - 1])
    text = (tmp_path / "events.jsonl").read_text()
    for line in text.splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert np.isnan(Run(tmp_path).series("train/loss")[1]).all()
    assert "train/loss,inf" in (tmp_path / "events.csv").read_text()


@pytest.mark.parametrize("name", ["events.jsonl", "events.csv"])
def test_a_run_goes_on_after_a_line_that_a_kill_cut_short(tmp_path, name):
    write_info(tmp_path, INFO)
    write(tmp_path, 100, 200)
    path = tmp_path / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    if name == "events.jsonl":  # readable as it is
        assert Run(tmp_path).series("train/loss")[0].tolist() == [100]
    write(tmp_path, 200, 300)
    assert path.read_bytes().startswith(whole)
    rows = list(csv.reader((tmp_path / "events.csv").open()))
    assert rows[0] == ["step", "name", "value"] and all(len(row) == 3 for row in rows)
    assert Run(tmp_path).series("train/loss")[0].tolist() == [100, 200, 300]


def test_cutting_a_long_line(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b"one\n" + b"x" * 200_000)
    cut_after_last_line(path)
    assert path.read_bytes() == b"one\n"
    path.write_bytes(b"x" * 200_000)
    cut_after_last_line(path)
    assert path.read_bytes() == b""


def test_what_a_resumed_run_repeats_counts_as_it_was_the_last_time(tmp_path):
    write_info(tmp_path, INFO)
    write(tmp_path, 100, 200, 300, 400)
    write(tmp_path, 250, 350, loss=lambda step: -step)
    steps, losses = Run(tmp_path).series("train/loss")
    assert steps.tolist() == [100, 200, 250, 350]
    assert losses.tolist() == [0.01, 0.005, -250, -350]


WRITER = """
import sys
from gsnr_tf.monitor.sinks import Sinks
sinks = Sinks(sys.argv[1])
step = 0
while True:
    step += 1
    sinks.write_events([("train/loss", float(step), step)])
    if step == 50:
        print("ready", flush=True)
"""


def test_a_killed_run_leaves_readable_files(tmp_path):
    write_info(tmp_path, INFO)
    process = Process(*python("-c", WRITER, str(tmp_path)), PYTHONPATH=os.getcwd())
    try:
        deadline = time.monotonic() + 300
        while "ready" not in process.output() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert process.alive, process.output()
        for member in process.family():
            member.send_signal(signal.SIGKILL)
        process.wait(10)
    finally:
        process.end()
    steps, losses = Run(tmp_path).series("train/loss")
    assert len(steps) >= 50 and steps.tolist() == losses.tolist()
    assert len(tensorboard_values(tmp_path)["train/loss"]) >= 49
    assert len((tmp_path / "events.csv").read_text().splitlines()) >= 51


def test_a_folder_without_a_run_is_told_from_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run\.json and events\.jsonl are not"):
        Run(tmp_path)
