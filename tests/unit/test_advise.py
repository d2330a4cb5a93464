"""Advice and sentences from runs whose noise scale is known."""

import re

import numpy as np
import pytest

from gsnr_tf.cli import main
from gsnr_tf.monitor.advise import TooLittleData, advise
from gsnr_tf.monitor.estimate import noise_of
from gsnr_tf.monitor.run import Run
from gsnr_tf.monitor.sentences import sentences
from tests.recorded import Drawn, record

SHAPES = {"embedding/table": (60, 8), "dense/kernel": (20, 10), "dense/bias": (10,)}


def run_of(folder, scales, batch=256, **more):
    record(folder, Drawn(SHAPES, 8, batch, more.pop("seed", 0)), scales, **more)
    return Run(folder)


@pytest.fixture(scope="module")
def steady(tmp_path_factory):
    """A noise scale of 1,000 examples at a batch of 256."""
    return run_of(tmp_path_factory.mktemp("steady"), np.full(40, 1000.0))


def test_the_interval_holds_the_truth(tmp_path):
    """90 of 100 intervals should: of 20 all but a few do."""
    held, factors = 0, []
    for seed in range(20):
        critical = noise_of(
            run_of(tmp_path / str(seed), np.full(16, 1000.0), seed=seed)
        ).critical_batch()
        held += critical.low <= 1000 <= critical.high
        factors.append(critical.factor)
    assert held >= 15  # less has a chance of 1 in 90, of too narrow ones none
    assert np.median(factors) < 1.5


def test_the_noise_of_segments_follows_its_growth(tmp_path):
    noise = noise_of(run_of(tmp_path, np.geomspace(300, 5000, 64), batch=1024))
    scales = [noise.scale(i) for i in range(len(noise.trace))]
    assert len(scales) == 8
    truth = np.geomspace(300, 5000, 64).reshape(8, 8).mean(1)
    assert all(s.low * 0.8 < t < s.high * 1.25 for s, t in zip(scales, truth))


def test_advice_takes_the_fastest_layout_that_is_not_too_dear(steady):
    advice = advise(steady)
    assert advice.critical.value == pytest.approx(1000, rel=0.1)
    assert advice.largest == 512
    assert advice.now.seconds == advice.now.cost == 1
    assert advice.best.cost <= 1.5
    for other in advice.others:
        assert other.seconds >= advice.best.seconds or other.cost > 1.5
        assert other.batch == other.workers * other.accumulation * 32
        # 80 ms for each micro-batch, 10 for the update, 20 to communicate on 2 workers.
        moved = 0.02 * (1 - 1 / other.workers) / 0.5
        seconds = (other.accumulation * 0.08 + moved + 0.01) / 0.35
        assert other.seconds == pytest.approx(seconds * other.steps, rel=1e-6)
    doubled = (1 + 1000 / 512) / (1 + 1000 / 256)
    fastest = advice.others[-1]
    assert fastest.batch == 512 and fastest.steps == pytest.approx(doubled, rel=0.02)


def test_money_buys_speed(steady):
    saving, spending = advise(steady, 1.0).best, advise(steady, 2.0).best
    assert saving.cost <= 1 < spending.cost <= 2
    assert spending.seconds < saving.seconds
    with pytest.raises(ValueError, match="Received: 0.5"):
        advise(steady, 0.5)


def test_learning_rates_follow_the_rule(tmp_path):
    for name, factor in [("GSNRAdam", 2**0.5), ("GSNRSGD", None)]:
        folder = tmp_path / name
        run = run_of(folder, np.full(40, 1000.0), optimizer=name, accumulation=4)
        found = advise(run, 2.0)
        assert found.best.batch == 512
        # The AdaScale gain is what the updates shrink by.
        expected = factor or 1 / found.best.steps
        assert found.rate_factor == pytest.approx(expected, rel=0.1)
        assert found.learning_rate == 0.1


def test_a_batch_above_the_critical_one_shrinks(tmp_path):
    advice = advise(run_of(tmp_path, np.full(40, 100.0), batch=1024))
    assert advice.largest == 256  # two micro-batches
    assert advice.best.batch < 1024 and advice.best.examples < 1
    assert any("are above the critical batch" in note for note in advice.notes)


def test_one_worker_knows_nothing_of_communication(tmp_path):
    run = run_of(tmp_path, np.full(40, 3000.0), workers=1, accumulation=8)
    advice = advise(run)
    assert {other.workers for other in advice.others} == {1}
    assert any("up to 64 workers" in note for note in advice.notes)


def test_too_few_records_are_refused(tmp_path):
    with pytest.raises(TooLittleData, match="10 record.* Train 140 more updates"):
        advise(run_of(tmp_path, np.full(10, 1000.0)))


def test_noise_that_hides_the_gradient_is_refused_until_there_is_enough(tmp_path):
    records, rounds = 26, 0
    while True:
        run = run_of(tmp_path / str(records), np.full(records, 40_000.0), batch=512)
        try:
            critical = advise(run).critical
            break
        except TooLittleData as refused:
            more = int(re.search(r"([\d,]+) more records", str(refused))[1])
            assert f"{more * 10:,} updates at every=10" in str(refused)
            records += more
            rounds += 1
    assert 1 <= rounds <= 4
    assert critical.low <= 40_000 <= critical.high <= 4 * critical.low


def test_sentences_state_batch_and_its_doubling(steady):
    first = sentences(steady)[0].replace("\u00a0", " ")
    below, examples, steps = re.search(
        r"is ([\d.]+) × below .*cost (\d+) % more examples and save (\d+) %", first
    ).groups()
    # 3.9 × below: (1 + 0.512)/(1 + 0.256) and (1 + 1.95)/(1 + 3.9).
    assert float(below) == pytest.approx(3.9, abs=0.3)
    assert int(examples) == pytest.approx(20, abs=2)
    assert int(steps) == pytest.approx(40, abs=2)


def test_sentences_see_growth_gap_time_and_few_samples(tmp_path):
    run = run_of(tmp_path, np.geomspace(300, 9000, 64))
    text = " ".join(sentences(run)).replace("\u00a0", " ")
    assert "The noise scale grew" in text
    assert "Train minus validation of loss stayed at -0.1." in text
    assert "An update took 350 ms: 91 % backward, 6 % communication, 3 % update" in text
    assert "poor estimate" not in text
    record(tmp_path / "k2", Drawn(SHAPES, 2, 256), np.full(8, 100.0))
    assert "With 2 samples" in " ".join(sentences(Run(tmp_path / "k2")))
    record(tmp_path / "robust", Drawn(SHAPES, 2, 256), np.full(8, 100.0), estimator="robust")
    assert "poor estimate" not in " ".join(sentences(Run(tmp_path / "robust")))


def test_the_command_prints_advice_or_what_is_missing(steady, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["advise", str(steady.folder)]) == 0
    printed = capsys.readouterr().out
    assert "Critical batch: " in printed and "worker-seconds" in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert main(["advise", str(tmp_path)]) == 1
    assert "is not the folder of a run" in capsys.readouterr().err
