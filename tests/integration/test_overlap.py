"""Gradients leave while backward still runs, as Horovod's own timeline shows."""

import pytest

from gsnr_tf.benchmarks import overlap
from tests.processes import python, run

LAYERS = 5


@pytest.mark.slow
def test_exchange_overlaps_backward(tmp_path):
    timeline = tmp_path / "timeline.json"
    done = run(
        python(
            "-m", "gsnr_tf.cli", "bench", "overlap", f"--layers={LAYERS}",
            "--steps=4", f"--timeline={timeline}",
        ),
        120,
    )  # fmt: skip
    assert done.code == 0, done.output
    assert "% of the\nexchange was over" in done.output
    steps = overlap.exchanges(timeline)
    assert len(steps) == 4
    for step in steps:
        assert all(e.ready <= e.start <= e.end for e in step)
        # Each large layer travels alone. Which of two gradients that could be next is
        # computed first, TensorFlow decides.
        large = [e.bucket for e in step if e.bucket < LAYERS]
        assert sorted(large) == list(range(LAYERS))
        first, last = step[0], step[-1]
        assert first.ready < last.ready
    assert max(map(overlap.hidden_share, steps)) > 0
