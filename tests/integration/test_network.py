"""`gsnr-tf bench network`: real ranks and links, and what the kernel counts."""

import json
import subprocess
import sys

import pytest

from gsnr_tf.benchmarks import sandbox
from tests.integration.test_examples import command_line
from tests.processes import run

SECONDS = 120

_REFUSAL = sandbox.why_not()
pytestmark = pytest.mark.skipif(_REFUSAL is not None, reason=str(_REFUSAL))


def test_slices_send_what_a_plain_allreduce_sends(tmp_path):
    measured = tmp_path / "measured.json"
    setting = ["--np", "2", "--params", "200k", "--rounds", "1", "--rates", "1"]
    bench = run(
        command_line(
            "bench", "network", *setting, "--delays", "0", "--json", str(measured)
        ),
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
    for line in ("2 ranks, 199,800 parameters, 1 Gbit/s", "GSNR lamb, sharding=slices"):
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


def test_an_interrupted_measurement_takes_its_processes_along():
    lines = sandbox.lines_of("tests.integration.idle", [])
    shown = [next(lines) for _ in range(2)]
    lines.close()
    assert shown == ["in a network of its own: lo\n", "waiting\n"]


def test_a_failed_measurement_is_an_error():
    with pytest.raises(RuntimeError, match="tests.integration.idle ended with code 3"):
        list(sandbox.lines_of("tests.integration.idle", ["3"]))
