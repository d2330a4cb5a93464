"""The soak in short: what befalls a job, that it goes on, and that it ends right."""

import pytest

from gsnr_tf.benchmarks.soak import Soak
from gsnr_tf.benchmarks.soak_faults import FAULTS, named
from tests.processes import python, run

SECONDS = 600
SHORT = [
    ("engine", "slices", ["a rank is told to end", "a checkpoint is altered"]),
    ("elastic", "none", ["a rank is killed", "a rank raises", "all ranks are killed"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "sharding", "names"), SHORT)
def test_a_disturbed_training_ends_as_one_that_is_not(tmp_path, capsys, family, sharding, names):
    faults = [f for f in FAULTS if f.family == family and f.name in names]
    soak = Soak(tmp_path, seed=0, faults=faults)
    soak.job(family, sharding, faults)
    soak.compare()
    said = capsys.readouterr().out
    assert soak.passed, said
    assert [tally.survived for tally in soak.tallies.values()] == [1] * len(names)
    # Up to a checkpoint, or a commit, and what came between two looks.
    lost = {name: tally.lost for (_, name), tally in soak.tallies.items()}
    assert all(updates <= 20 for updates in lost.values()), lost
    assert lost.get("a rank is told to end", 0) == 0
    assert soak.compared > 40


def test_every_fault_has_a_name_of_its_own():
    names = [(fault.family, fault.name) for fault in FAULTS]
    assert len(set(names)) == len(names)
    assert named("") == FAULTS
    assert {fault.family for fault in named("^elastic: a rank")} == {"elastic"}


@pytest.mark.slow
def test_the_command_leaves_nothing_behind(tmp_path):
    """Time is over before the first fault comes."""
    options = ["--minutes", "0.01", "--seed", "5", "--only", "engine: a rank is killed"]
    command = python("-m", "gsnr_tf.cli", "bench", "soak", *options)
    done = run(command, SECONDS, TMPDIR=tmp_path)
    assert done.code == 0, done.output
    assert "1 jobs in" in done.output and "seed 5" in done.output
    table = done.output[done.output.index("1 jobs in") :].splitlines()
    assert max(map(len, table)) <= 80
    assert table[-1].startswith("Weights compared after ")
    assert table[-1].endswith(": 0 wrong results.")
    assert list(tmp_path.iterdir()) == []
