"""`gsnr-tf compare` as a user runs it, and as a power cut ends it."""

import json
import re
import time
from pathlib import Path

import pytest

from tests.integration.test_examples import command_line
from tests.processes import Process, run

TASK = str(Path(__file__).with_name("plane_task.py"))
SECONDS = 400
pytestmark = pytest.mark.slow


def study(folder):
    return command_line(
        "compare", TASK, "--batch=64", "--optimizers=adam", "--gsnr=ceiling=10",
        "--trials=4", "--seeds=2", "--samples=4", "--jobs=2", f"--out={folder}",
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
    assert 5 <= len(before) < 24

    finished = run(study(tmp_path), SECONDS)
    assert finished.code == 0, finished.output
    told = " ".join(finished.output.split())
    assert f"{24 - len(before)} of 24 runs to do" in told
    after = rows(tmp_path)
    # Seconds and all: nothing was run again.
    assert [row for row in after if row in before] == sorted(before, key=after.index)
    runs = [(r["contender"], r["phase"], r["learning_rate"], r["seed"]) for r in after]
    assert len(runs) == len(set(runs)) == 3 * (4 + 2 * 2)

    # Piped, it speaks in lines that fit a terminal.
    assert "\x1b" not in finished.output
    assert re.search(r"^\d+/\d+ runs, done: adam 64 ", finished.output, re.MULTILINE)
    table = finished.output[finished.output.index("adam, squared error") :]
    assert max(map(len, table.replace(str(tmp_path), "").splitlines())) <= 80
    assert re.search(r"adam, batch 64: .*(spread|control)", table)

    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r"(src|href)=\"?http", page)
    assert "every contender tried 4 learning rates" in page
