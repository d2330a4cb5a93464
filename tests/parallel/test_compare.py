"""A run of a study on several ranks."""

import numpy as np
import pytest

from tests.processes import ROOT

PLANE = str(ROOT / "tests" / "integration" / "plane_task.py")


def plane_run(form, learning_rate=0.1):
    from gsnr_tf.compare import load_task
    from gsnr_tf.compare.contenders import contenders_of
    from gsnr_tf.compare.training import Trainer

    task = load_task(PLANE)
    contender = contenders_of("adam", [{"ceiling": 10.0}], 4)[form]
    trainer = Trainer(task, task.load(), contender, 64)
    # On from a third, as a race does.
    trainer.run(learning_rate, seed=1, evaluations=4, whole=False)
    return trainer.run(learning_rate, seed=1, evaluations=4)


@pytest.mark.parametrize("form", [0, -1], ids=["base", "gsnr"])
def test_two_ranks_share_the_samples_of_one_process(on_ranks, form):
    ours, other = on_ranks(2, plane_run, form)
    alone = plane_run(form)
    curves = [
        [(row["update"], row["loss"], row["validation"]) for row in result["history"]]
        for result in (ours, alone)
    ]
    np.testing.assert_allclose(*curves, rtol=1e-4)
    np.testing.assert_allclose(ours["test"], alone["test"], rtol=1e-4)
    # Rank 1 does not score, and hears what rank 0 scored.
    assert other["validation"] == ours["validation"]


def test_ranks_agree_that_a_run_diverged(on_ranks):
    both = on_ranks(2, plane_run, 0, float("nan"))
    assert [result["diverged"] for result in both] == [True, True]
