"""`gsnr-tf bench network`: real ranks and links, and what the kernel counts."""

import contextlib
import json
import os
import subprocess
import sys

import psutil
import pytest

from gsnr_tf.benchmarks import sandbox
from tests.integration.test_examples import command_line
from tests.processes import MARK, run

SECONDS = 120

_REFUSAL = sandbox.why_not()
pytestmark = pytest.mark.skipif(_REFUSAL is not None, reason=str(_REFUSAL))


@pytest.mark.slow
def test_slices_send_what_a_plain_allreduce_sends(tmp_path):
    measured = tmp_path / "measured.json"
    setting = ["--np", "2", "--params", "200k", "--tensors", "2", "--rates", "1"]
    bench = run(
        command_line("bench", "network", *setting, "--rounds", "1", "--json", str(measured)),
        SECONDS,
    )
    assert bench.code == 0, bench.output
    (answer,) = json.loads(measured.read_text())
    plain, whole, slices = answer["rows"]
    assert [row["contender"] for row in answer["rows"]] == ["keras", "none", "slices"]
    # Half of an allreduce is sent by each of two ranks, twice.
    data = 4 * answer["elements"]
    assert data <= plain["handed_bytes"] <= 1.05 * data
    assert slices["wire_bytes"] <= 1.05 * plain["wire_bytes"]
    assert 1.9 <= whole["wire_bytes"] / plain["wire_bytes"] <= 2.1
    # Segments of 1,500 bytes, 66 of them headers.
    for row in answer["rows"]:
        assert 1.03 <= row["wire_bytes"] / row["handed_bytes"] <= 1.06
    title = f"2 ranks, {answer['elements']:,} parameters, 1 Gbit/s"
    for line in (title, "GSNR lamb, sharding=slices"):
        assert line in bench.output
    assert max(map(len, bench.output.splitlines()[-6:])) <= 80


def test_a_sandbox_ends_with_the_one_who_made_it():
    program = (
        "import time; from gsnr_tf.benchmarks import sandbox; "
        "sandbox.end_with_parent(); print('ready', flush=True); time.sleep(60)"
    )
    job = subprocess.Popen(
        sandbox.inside([sys.executable, "-c", program]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert job.stdout.readline() == b"ready\n"
        job.stdin.close()
        # As it would be closed if the parent were killed.
        assert job.wait(20) == 1
    finally:
        job.kill()
        job.stdout.close()


def marked():
    """Processes that have a mark in their environment, wherever they live."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == "interrupted":
                yield process


def test_an_interrupted_measurement_takes_its_processes_along(monkeypatch):
    monkeypatch.setenv(MARK, "interrupted")
    lines = sandbox.lines_of("tests.integration.idle", [])
    network = next(lines)
    assert network.startswith("net:[")
    assert network.strip() != os.readlink("/proc/self/ns/net")
    assert next(lines) == "waiting\n"
    alive = list(marked())
    assert alive
    lines.close()
    _, left = psutil.wait_procs(alive, timeout=10)
    assert left == []


def test_a_failed_measurement_is_an_error():
    with pytest.raises(RuntimeError, match="tests.integration.idle ended with code 3"):
        list(sandbox.lines_of("tests.integration.idle", ["3"]))
