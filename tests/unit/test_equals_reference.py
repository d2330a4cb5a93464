"""Every optimizer on every problem does what the contract says."""

import numpy as np
import pytest

from tests.problems import (
    EVERYTHING,
    OPTIMIZERS,
    PROBLEMS,
    ROWS,
    TABLES,
    VARIANTS,
    assert_close,
    feed,
    values,
)

# Four samples are few, and the optimizers say so.
pytestmark = pytest.mark.filterwarnings("ignore:.*samples an update")
K = 4
# float32 rounds at 6e-8. The largest loss is in 1 − β₂ᵗ with β₂ = .999, of which
# float32 keeps 1.3e-5; its root enters the step.
ROUNDING = {"float32": 2e-5, "float64": 1e-12}


def slots_of(optimizer):
    return {name: values(slots) for name, slots in optimizer._slots.items()}


def compare(row, problem, dtype, **more):
    variables = problem.variables(dtype)
    optimizer = row.make(gradient_accumulation_steps=K, **more)
    expected = row.make_reference(**more)
    weights = [w.astype("float64") for w in problem.weights]
    for samples in problem.samples:
        feed(optimizer, variables, samples)
        before, weights = weights, expected.step(weights, samples, paths=problem.names)
        # Relative to the numbers that are added up, not to a sum that may cancel.
        for found, new, old in zip(values(variables), weights, before):
            scale = np.maximum(np.abs(old), np.abs(new - old)).max()
            rounding = ROUNDING[dtype]
            assert_close([found], [new], rounding, rounding * scale, problem.names)
        for name, found in slots_of(optimizer).items():
            slots = [slots[name] for slots in expected.state]
            # The mean of a few samples of size 1 may come near 0.
            assert_close(found, slots, ROUNDING[dtype], ROUNDING[dtype] / 10)
    return optimizer


@pytest.mark.smoke
@pytest.mark.parametrize("row", VARIANTS)
def test_float32(row):
    compare(VARIANTS[row], EVERYTHING, "float32")


@pytest.mark.parametrize("row", OPTIMIZERS)
def test_each_problem_alone(row):
    for problem in PROBLEMS.values():
        compare(OPTIMIZERS[row], problem._replace(samples=problem.samples[:1]), "float32")


@pytest.mark.parametrize("row", VARIANTS)
def test_float64(row):
    optimizer = compare(VARIANTS[row], EVERYTHING, "float64")
    for slots in optimizer._slots.values():
        assert {slot.dtype for slot in slots} == {"float64"}


@pytest.mark.parametrize("row", ROWS)
def test_by_row(row):
    compare(ROWS[row], TABLES, "float64")


@pytest.mark.parametrize("width", [1, 2, 3])
def test_narrow_rows(width):
    problem = TABLES._replace(
        names=["embeddings"],
        weights=[TABLES.weights[0][:, :width]],
        samples=[[[one[0][:, :width]] for one in update] for update in TABLES.samples],
    )
    compare(ROWS["adam james_stein gated"], problem, "float64")


def test_small_tables_of_one_width_share_a_bucket():
    names, weights = TABLES.names * 2, [w + i for i in (0, 1) for w in TABLES.weights]
    samples = [[one * 2 for one in update] for update in TABLES.samples]
    problem = TABLES._replace(names=names, weights=weights, samples=samples)
    compare(ROWS["lamb james_stein outside"], problem, "float64")


@pytest.mark.parametrize("clip", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_clipping_acts_on_the_mean_and_not_on_the_statistics(clip):
    for row in OPTIMIZERS.values():
        compare(row, PROBLEMS["model"], "float64", **{clip: 0.25})


def test_clipping_bites_and_spares_a_gradient_that_is_small():
    row, problem = VARIANTS["sgd"], PROBLEMS["model"]

    def after(**clip):
        variables = problem.variables()
        feed(row.make(gradient_accumulation_steps=K, **clip), variables, problem.samples[0])
        return values(variables)

    free = after()
    for clip in ("clipnorm", "global_clipnorm", "clipvalue"):
        assert not np.allclose(after(**{clip: 0.25})[0], free[0], rtol=1e-3)
        np.testing.assert_array_equal(after(**{clip: 1e3})[0], free[0])
