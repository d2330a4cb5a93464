"""`fit_in_strategy` on two workers of MultiWorkerMirroredStrategy."""

import json
from pathlib import Path

import numpy as np
import pytest

import gsnr_tf
from tests import strategy_training as training
from tests.processes import run_together, workers

WORKER = Path(__file__).with_name("strategy_worker.py")
SECONDS = 240


def on_workers(number, program, *arguments):
    """What a program printed on so many workers of one cluster."""
    finished = run_together(workers(number, program, *arguments), SECONDS)
    assert [one.code for one in finished] == [0] * number, finished[0].output + finished[-1].output
    return [one.output for one in finished]


def alone(optimizer):
    """What one process makes of the whole batches, or of the same samples."""
    whole = training.batches()
    if optimizer == "gsnr":
        model = training.model(training.gsnr_optimizer(4))
        slices = training.slices()
        history = gsnr_tf.fit_in_strategy(
            model, slices, training.EPOCHS, validation_data=whole, verbose=0
        )
    else:
        model = training.model(training.plain_optimizer())
        history = model.fit(whole, epochs=training.EPOCHS, verbose=0, validation_data=whole)
    return training.result(model, history)


@pytest.mark.filterwarnings("ignore:.*samples an update")
@pytest.mark.parametrize("optimizer", ["gsnr", pytest.param("mean", marks=pytest.mark.slow)])
def test_two_workers_equal_one_process(optimizer):
    """Uneven batches, sample weights, a regularizer, accumulation, metrics, validation."""
    outputs = on_workers(2, WORKER, optimizer)
    first, other = (
        json.loads(next(line for line in output.splitlines() if line.startswith("{")))
        for output in outputs
    )
    assert first == other  # bit by bit
    expected = alone(optimizer)
    assert first.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(first[name], values, rtol=1e-5, atol=1e-5, err_msg=name)
