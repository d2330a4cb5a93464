"""The paper's smallest task, as the example runs it."""

import re
import sys

import numpy as np
import pytest

from tests import reference
from tests.processes import ROOT

EXAMPLES = ROOT / "keras_examples"


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import linear_regression

    yield linear_regression
    del sys.modules["linear_regression"]


def test_its_steps_are_those_of_the_reference(example):
    given = ["--steps", "12", "--batch", "64", "--k", "4", "--ks", "4", "--seeds", "1"]
    args = example.parse_arguments(given)
    form = example.Form(ceiling=5.0, gamma=0.2, k=4)
    (curve,) = example.curves(args, form, [0.0625])[0.0625]
    x, y = example.examples(args, 0)
    sgd, weights = reference.SGD(0.0625, gamma=0.2, ceiling=5.0), [np.zeros([10, 1])]
    for reached, rows in zip(curve, np.split(np.arange(len(x)), args.steps)):
        parts = [(x[own], y[own]) for own in np.split(rows, form.k)]
        samples = [[2 * a.T @ (a @ weights[0] - b) / len(a)] for a, b in parts]
        weights = sgd.step(weights, samples)
        risk = np.sum((weights[0] - example.TRUE_WEIGHTS) ** 2)
        np.testing.assert_allclose(reached, risk, rtol=1e-4)


def test_it_prints_a_table_and_saves_a_figure(example, tmp_path, capsys):
    """At γ = 1 all forms are SGD; a rate at which all diverge reaches nothing."""
    figure = tmp_path / "deep" / "figure.png"
    given = ["--steps", "20", "--batch", "256", "--seeds", "2", "--learning-rate", "0.25"]
    given += ["--gamma", "1", "--k", "4", "--gammas", "1", "--ks", "4", "--plot", str(figure)]
    example.main(example.parse_arguments([*given, "--learning-rates", "0.25", "4"]))
    printed = capsys.readouterr().out
    row = r"^(?:learning rate|γ|k) +[\d.]+ +(\S+) +(\S+) +(\S+)$"
    cells = re.findall(row, printed, re.MULTILINE)
    assert len(cells) == 8 and all(len(set(cell)) == 1 for cell in cells)
    steps, risks = cells[:4], cells[4:]
    assert 1 < float(steps[0][0]) < 20 and float(risks[0][0]) < 0.1
    assert steps[1][0] == risks[1][0] == "-"
    assert steps[0] == steps[2] == steps[3]
    assert figure.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_batch_that_cannot_be_cut_is_refused(example, capsys):
    with pytest.raises(SystemExit):
        example.parse_arguments(["--batch", "100", "--ks", "8"])
    assert "--batch 100 cannot be cut into k = 32 micro-batches" in capsys.readouterr().err
