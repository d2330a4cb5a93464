"""`fit_in_strategy` on two workers of MultiWorkerMirroredStrategy."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest

import gsnr_tf
from tests import strategy_training as training
from tests.processes import python, run_together

WORKER = Path(__file__).with_name("strategy_worker.py")
SECONDS = 240


def free_ports(number):
    """Ports that were free a moment ago; held together, so that they differ."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(number)]
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


def on_workers(number, program, *arguments):
    """What a program printed on so many workers of one cluster."""
    cluster = {"worker": [f"localhost:{port}" for port in free_ports(number)]}
    tasks = [{"type": "worker", "index": index} for index in range(number)]
    commands = [
        (python(program, *arguments), {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})})
        for task in tasks
    ]
    finished = run_together(commands, SECONDS)
    assert [one.code for one in finished] == [0] * number, finished[0].output + finished[-1].output
    return [one.output for one in finished]


def expected():
    """What one process makes of the whole batches, and of the same samples."""
    whole = training.batches()
    model = training.model(training.plain_optimizer())
    history = model.fit(whole, epochs=training.EPOCHS, verbose=0, validation_data=whole)
    yield training.result(model, history)
    model = training.model(training.gsnr_optimizer(4))
    slices = training.slices()
    history = gsnr_tf.fit_in_strategy(
        model, slices, training.EPOCHS, validation_data=whole, verbose=0
    )
    yield training.result(model, history)


@pytest.mark.filterwarnings("ignore:.*samples an update")
def test_two_workers_equal_one_process():
    """Uneven batches, sample weights, a regularizer, accumulation, metrics, validation."""
    outputs = on_workers(2, WORKER)
    found = [
        [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        for output in outputs
    ]
    assert found[0] == found[1]
    for one, other in zip(found[0], expected(), strict=True):
        assert one.keys() == other.keys()
        for name, values in other.items():
            np.testing.assert_allclose(one[name], values, rtol=1e-5, atol=1e-5, err_msg=name)
