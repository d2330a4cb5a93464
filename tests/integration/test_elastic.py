"""Ranks die and hosts come while a model trains, under horovodrun's elastic mode.

After Horovod's own way to test this: a discovery script that prints a file, a schedule
inside the training program, and assertions on what the ranks have logged.
"""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.processes import python, run

PROGRAM = str(Path(__file__).with_name("elastic_training.py"))
EPOCHS, BATCHES, COMMIT = 3, 8, 2
SECONDS = 240
pytestmark = pytest.mark.slow


def train(folder, sharding, fewest):
    """Runs the job; its logs, a list of dicts for each process."""
    (folder / "hosts").write_text("localhost:1\n127.0.0.1:1\n")
    script = folder / "discover"
    script.write_text(f"#!/bin/sh\ncat '{folder}/hosts'\n")
    script.chmod(0o755)
    options = f"--np 2 --min-np {fewest} --max-np 3 --network-interface lo".split()
    job = [
        "run",
        *options,
        "--host-discovery-script",
        script,
        PROGRAM,
        folder,
        sharding,
    ]
    finished = run(python("-m", "gsnr_tf.cli", *job), SECONDS)
    assert finished.code == 0, finished.output
    logs = [path.read_text().splitlines() for path in sorted(folder.glob("log-*"))]
    return [[json.loads(line) for line in log] for log in logs]


def position(line):
    return line["epoch"] * BATCHES + line["batch"]


def adam_alone(folder, window):
    """What one process learns with Keras' Adam from the same batches."""
    x, y, *weights = np.load(folder / "first.npz").values()
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    model.set_weights(weights)
    model.compile(optimizer=keras.optimizers.Adam(0.01, epsilon=1e-15), loss="mse")
    model.fit(x, y, batch_size=12 * window, epochs=EPOCHS, shuffle=False, verbose=0)
    return model.get_weights()


@pytest.mark.parametrize(
    ("sharding", "fewest", "sizes"), [("none", 1, [2, 1, 3]), ("slices", 2, [2, 3])]
)
def test_training_survives_a_death_and_takes_in_a_host(tmp_path, sharding, fewest, sizes):
    logs = train(tmp_path, sharding, fewest)
    window = 2 if sharding == "none" else 1
    # Two ranks at first, of which one dies; two more with the host.
    assert len(logs) == 4
    survivor = max(logs, key=len)

    # The survivor does every batch, and after a death those since the last commit anew.
    done = [position(line) for line in survivor]
    steps = np.diff(done)
    assert sorted(set(done)) == list(range(EPOCHS * BATCHES))
    assert np.sum(steps != 1) <= 1 and np.min(steps) > -COMMIT
    assert list(dict.fromkeys(line["size"] for line in survivor)) == sizes
    for line in survivor:
        assert line["iterations"] == (position(line) + 1) // window
        assert line["samples"] == line["size"] * window

    # All ranks have the same weights after the same batch.
    by_batch = {}
    for line in (line for log in logs for line in log):
        by_batch.setdefault((line["size"], position(line)), []).append(line)
    for (size, batch), lines in by_batch.items():
        assert len({line["weights"] for line in lines}) == 1, (size, batch)
        # But for the last batch before the death, which not all may have ended.
        assert len(lines) == size or batch == 6
    assert {line["rank"] for line in by_batch[3, EPOCHS * BATCHES - 1]} == {0, 1, 2}

    # And they are those that one process learns, undisturbed.
    learned = np.load(tmp_path / "last.npz").values()
    for value, expected in zip(learned, adam_alone(tmp_path, window)):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
