"""`gsnr-tf compare` as a user runs it, and as a power cut ends it."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest

from tests.integration.test_examples import command_line
from tests.processes import Process, run

TASK = str(Path(__file__).with_name("plane_task.py"))
SECONDS = 900
CONTENDERS = ("base", "control", "GSNR ceiling=10")
pytestmark = pytest.mark.slow


def study(folder):
    return command_line(
        "compare", TASK, "--batch=64", "--optimizers=adam", "--gsnr=ceiling=10",
        "--trials=3", "--seeds=3", "--samples=2", "--jobs=2", f"--out={folder}",
    )  # fmt: skip


def rows(folder):
    file = folder / "results.jsonl"
    if not file.exists():
        return []
    # The last line may be half written.
    return [json.loads(line) for line in file.read_text().split("\n")[:-1]]


def test_a_study_that_is_killed_goes_on_where_it_was(tmp_path):
    # Slow enough to be met in the middle.
    process = Process(*study(tmp_path), PLANE_SECONDS="0.1")
    try:
        deadline = time.monotonic() + SECONDS
        while len(rows(tmp_path)) < 5:
            assert process.alive and time.monotonic() < deadline, process.output()
            time.sleep(0.05)
        process.kill()
        # Its workers notice, in whatever they are doing.
        deadline = time.monotonic() + SECONDS
        while process.family():
            assert time.monotonic() < deadline, process.family()
            time.sleep(0.1)
    finally:
        process.end()
    before = rows(tmp_path)
    assert len(before) >= 5

    finished = run(study(tmp_path), SECONDS)
    assert finished.code == 0, finished.output
    told = " ".join(finished.output.split())
    assert re.search(r"3 contenders and batches: about [1-9]\d* trainings to do, 2 at", told)
    assert "Named in advance, against base: adam 64 GSNR ceiling=10" in told
    after = rows(tmp_path)
    # Seconds and all: nothing was run again.
    assert [row for row in after if row in before] == sorted(before, key=after.index)
    keys = ("contender", "regularizer", "learning_rate", "seed", "whole")
    runs = [tuple(row[key] for key in keys) for row in after]
    assert len(runs) == len(set(runs))
    # All have tried the same, and run with all seeds at the end.
    tried = [{run[1:] for run in runs if run[0] == c and not run[-1]} for c in CONTENDERS]
    assert len(tried[0]) >= 3 * 2 * 2 and tried[0] == tried[1] == tried[2]
    assert {run[3] for run in runs} == {1, 2, 3}
    files = [tmp_path / row["rows"] for row in after if row["whole"]]
    assert all(np.load(file).shape == (160,) for file in files)

    # Piped, it speaks in lines that fit a terminal.
    assert "\x1b" not in finished.output
    assert re.search(r"^\d+ runs, done: adam 64: done$", finished.output, re.MULTILINE)
    table = finished.output[finished.output.index("adam, squared error") :]
    assert max(map(len, table.replace(str(tmp_path), "").splitlines())) <= 80
    assert re.search(r"GSNR ceiling=10 against base: (ahead|behind|level), [+-]\d", table)
    assert "by test rows [" in " ".join(table.split())

    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r"(src|href)=\"?http", page)
    assert "every contender tried the same grid of 3 learning rates" in page
