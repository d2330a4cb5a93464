"""What the MovieLens example compares, and what it says of it."""

import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from scipy import stats

from tests.processes import ROOT

sys.path.insert(0, str(ROOT / "keras_examples"))

import movielens
import movielens_dlrm
import paired
import results


@pytest.fixture(scope="module")
def data():
    return movielens.load()


def started(name, rate, l2, seed, data, monkeypatch):
    """Initial weights, and the clicks and users of all batches, of a run of the example."""
    seen = {}

    def fit(self, batches, **arguments):
        seen["weights"] = [w.numpy() for w in self.trainable_variables]
        seen["batches"] = [(x["user"].numpy(), y.numpy()) for x, y in batches]
        table = self.get_layer("user_embedding")
        in_loss = 2 * table.embeddings_regularizer.l2 if table.embeddings_regularizer else 0.0
        decay = getattr(self.optimizer, "l2", None)
        seen["l2"] = {"optimizer": decay["(user|movie)_embedding"]} if decay else {"loss": in_loss}

    monkeypatch.setattr(keras.Model, "fit", fit)
    args = SimpleNamespace(
        epochs=2, batch_size=16_000, micro_batch=4_000, accumulation_steps=4, seeds=2,
        estimator="robust", granularity="row", l2_form="outside", gamma=0.1, ceiling=1.0,
    )  # fmt: skip
    movielens_dlrm.train(name, rate, l2, seed, data, args)
    assert seen["l2"] == {("optimizer" if name == "gsnr-adam" else "loss"): l2}
    assert len(seen["batches"]) == 2 * 20
    return [*seen["weights"], *(part for batch in seen["batches"] for part in batch)]


def test_both_sides_of_a_pair_have_the_same_start_and_the_same_batches(data, monkeypatch):
    """Whatever is tuned: seeds are what pairs them."""
    ours = started("gsnr-adam", 0.03, 0.001, 1, data, monkeypatch)
    base = started("adam", 0.07, 0.0, 1, data, monkeypatch)
    other = started("adam", 0.07, 0.0, 2, data, monkeypatch)
    assert len(ours) == len(base) == len(other)
    for one, two in zip(ours, base, strict=True):
        np.testing.assert_array_equal(one, two)
    equal = [np.array_equal(one, two) for one, two in zip(base, other, strict=True)]
    # Only biases, which start at 0, are the same with another seed.
    assert [np.any(one) for one, same in zip(base, equal) if same] == [False] * sum(equal)
    assert not any(equal[-80:])


def test_the_interval_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    ours, base = rng.normal(size=(2, 7))
    found = paired.difference(ours, base)
    expected = stats.ttest_rel(ours, base).confidence_interval(0.95)
    np.testing.assert_allclose(
        [found["low"], found["mean"], found["high"]],
        [expected.low, (ours - base).mean(), expected.high],
    )


def test_pairs_tell_what_spreads_hide():
    """Seeds differ by ten times the lead, and both sides by the same."""
    base = np.array([0.75, 0.78, 0.76, 0.79])
    lead = np.array([0.0020, 0.0025, 0.0015, 0.0020])
    assert paired.verdict(paired.difference(base + lead, base)) == "ahead"
    assert paired.verdict(paired.difference(base - lead, base)) == "behind"
    assert paired.verdict(paired.difference(base[::-1] + lead, base)) == "level"


def test_one_seed_has_a_difference_and_no_verdict():
    found = paired.difference([0.5], [0.25])
    assert found == {"mean": 0.25, "low": None, "high": None}
    assert paired.verdict(found) is None


@pytest.mark.parametrize(("ours", "base"), [([], []), ([0.5, 0.6], [0.5])])
def test_scores_without_a_partner_are_refused(ours, base):
    with pytest.raises(ValueError, match="each seed on both sides"):
        paired.difference(ours, base)


def runs_of(name, tests, rate=0.03, l2=0.001, valid=0.75):
    """Runs with these test AUCs, one a seed, and a gap of .1 and a bit."""
    setting = {"optimizer": name, "learning_rate": rate, "l2": l2, "seconds": 12.34}
    runs = []
    for seed, auc in enumerate(tests):
        row = {"test_auc": auc, "train_auc": auc + 0.1 + seed / 1e3, "validation_auc": valid}
        runs.append({**setting, "seed": seed, "history": [row]})
    return runs


@pytest.mark.parametrize(
    ("leads", "said"),
    [
        ([0.02, 0.03], "gsnr-lamb is level with gsnr-adam: the AUC interval contains 0"),
        ([0.02, 0.021], "gsnr-lamb is ahead of gsnr-adam: the AUC interval is above 0"),
        ([-0.02, -0.021], "gsnr-lamb is behind gsnr-adam: the AUC interval is below 0"),
        ([0.02], "gsnr-lamb against gsnr-adam: one seed tells nothing, take --seeds 8"),
    ],
)
def test_the_result_is_said_in_words_and_in_narrow_lines(leads, said, capsys):
    base = [0.7, 0.71][: len(leads)]
    kept = {
        "gsnr-lamb": runs_of("gsnr-lamb", np.add(base, leads), rate=0.015, l2=0.0003),
        "gsnr-adam": runs_of("gsnr-adam", base),
    }
    (found,) = results.compare(kept)
    results.print_table(kept)
    results.print_difference(found)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == said
    assert max(map(len, lines)) < 68, lines
    assert f"test AUC       {np.mean(leads):+.4f}" in lines[-3]
    assert ("[" in lines[-3]) == (len(leads) > 1)
    pairs = "2 paired seeds, 95 % t interval" if len(leads) > 1 else "one seed"
    assert lines[-4] == f"gsnr-lamb - gsnr-adam, {pairs}"


def test_the_last_optimizer_is_the_base_of_all_others():
    tests = {"gsnr-adam": [0.8, 0.81], "adam": [0.7, 0.71], "lamb": [0.6, 0.61]}
    found = results.compare({name: runs_of(name, values) for name, values in tests.items()})
    assert [(f["optimizer"], f["base"], f["seeds"]) for f in found] == [
        ("gsnr-adam", "lamb", 2), ("adam", "lamb", 2),
    ]  # fmt: skip
    np.testing.assert_allclose([f["test_auc"]["mean"] for f in found], [0.2, 0.1])
    np.testing.assert_allclose(found[0]["gap"]["each"], [0, 0], atol=1e-12)


def test_the_setting_with_the_best_validation_is_kept_whatever_the_test_rows_say():
    runs = [
        *runs_of("adam", [0.9], rate=0.01, l2=0.0, valid=0.70),
        *runs_of("adam", [0.6], rate=0.01, l2=0.1, valid=0.72),
        *runs_of("adam", [0.8], rate=0.02, l2=0.0, valid=0.71),
    ]
    assert results.best_setting(results.group(runs), "adam") == ("adam", 0.01, 0.1)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ((0.02, 0.001), []),
        ((0.01, 0.001), ["learning rate, 0.01"]),
        ((0.04, 0.01), ["learning rate, 0.04", "L2, 0.01"]),
        ((0.02, 0.0), []),  # there is nothing below
    ],
)
def test_a_best_value_at_the_end_of_the_grid_is_told(setting, told, capsys):
    rates, decays = [0.01, 0.02, 0.04], [0.0, 0.001, 0.01]
    grid = {("adam", rate, l2): [] for rate in rates for l2 in decays}
    results.print_ends(grid, "adam", setting)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"adam: the best {what}, ends the grid: try beyond it" for what in told]


def test_a_single_setting_is_no_grid_that_could_end(capsys):
    results.print_ends({("adam", 0.01, 0.001): []}, "adam", (0.01, 0.001))
    assert capsys.readouterr().out == ""
