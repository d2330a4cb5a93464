"""The bookkeeping of a study, without the training."""

import collections
import gc
import json
import math

import pytest

from gsnr_tf.compare import search
from gsnr_tf.compare.contenders import Contender, contenders_of, parse_form
from gsnr_tf.compare.settings import Settings, check
from gsnr_tf.compare.study import SEARCH_SEED, Study
from gsnr_tf.compare.summary import (
    Outcome,
    beyond_the_spread,
    cautions,
    outcomes,
    reaches,
    verdicts,
)
from gsnr_tf.compare.task import load_task
from tests.processes import ROOT

PLANE = str(ROOT / "tests" / "integration" / "plane_task.py")


# ---- the search ---------------------------------------------------------------------


def climb(loss, trials, start=0.1):
    tried = {}
    for _ in range(trials):
        rate = search.next_rate(tried, start)
        assert rate not in tried
        tried[rate] = loss(rate)
    return tried


@pytest.mark.parametrize("best", [0.003, 0.07, 0.1, 0.9, 5.0])
def test_it_comes_close_to_the_best_rate(best):
    tried = climb(lambda rate: abs(math.log(rate / best)), trials=9)
    assert 1 / 1.5 < search.best_rate(tried) / best < 1.5
    assert min(tried) < search.best_rate(tried) < max(tried)


def test_it_starts_alike_for_all_and_goes_beyond_the_end_while_the_best_is_there():
    up = list(climb(lambda rate: -rate, trials=6))
    down = list(climb(lambda rate: rate, trials=6))
    assert up[:3] == down[:3] == pytest.approx([0.1, 0.025, 0.4])
    assert up[3:] == pytest.approx([1.6, 6.4, 25.6])
    assert down[3:] == pytest.approx([0.1 / 16, 0.1 / 64, 0.1 / 256])


def test_where_all_diverged_it_goes_down():
    tried = climb(lambda rate: math.inf if rate > 0.003 else rate, trials=6)
    assert min(tried) < 0.003
    assert tried[search.best_rate(tried)] < math.inf


# ---- contenders ---------------------------------------------------------------------


def test_a_form_is_read_and_named():
    form = parse_form("ceiling=10, second_moment=raw, k=16")
    assert form == {"ceiling": 10.0, "second_moment": "raw", "k": 16}
    contender = contenders_of("lamb", [form], 8)[-1]
    assert contender.label == "GSNR ceiling=10 second_moment=raw k=16"
    assert contender.samples == 16
    optimizer = contender.optimizer(0.1, 16)
    assert (optimizer.ceiling, optimizer.second_moment) == (10.0, "raw")


def test_a_form_takes_the_arguments_that_all_optimizers_have():
    form = parse_form("weight_decay=0.01,clipnorm=1,use_ema=true")
    for rule in ("adam", "lamb", "momentum", "lars"):
        contender = contenders_of(rule, [form], 8)[-1]
        assert contender.label == "GSNR clipnorm=1 use_ema=True weight_decay=0.01"
        made = contender.optimizer(0.1, 8)
        assert (made.weight_decay, made.clipnorm, made.use_ema) == (0.01, 1, True)
    slower = contenders_of("momentum", [parse_form("momentum=0.5")], 8)[-1]
    assert slower.optimizer(0.1, 8).momentum == 0.5


def test_k_is_part_of_a_name_where_it_is_a_form_s_own():
    forms = [parse_form(text) for text in ("ceiling=1", "k=4", "k=16")]
    labels = [contender.label for contender in contenders_of("adam", forms, 8)]
    assert labels == ["base", "control", "GSNR ceiling=1", "GSNR k=4", "GSNR k=16"]


def test_base_and_control_are_always_there_but_lars_has_no_base():
    kinds = {
        rule: [c.kind for c in contenders_of(rule, [{}], 8)]
        for rule in ("adam", "lars")
    }
    assert kinds == {"adam": ["base", "control", "gsnr"], "lars": ["control", "gsnr"]}
    control = contenders_of("adam", [], 8)[1].optimizer(0.1, 8)
    assert control.gamma == control.ceiling == 1


def test_a_form_is_left_out_where_a_rule_does_not_know_its_argument():
    raw = {"second_moment": "raw"}
    assert contenders_of("adam", [raw], 8)[-1].kind == "gsnr"
    assert contenders_of("momentum", [raw], 8)[-1].kind == "control"


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ("ceiling", "reads name=value.*Received: 'ceiling'"),
        ("celing=3", "No GSNR optimizer has the argument 'celing'"),
        ("gamma=2", r"gamma must be in \(0, 1\]"),
        ("k=2.5", "whole number of samples. Received: 'k=2.5'"),
        ("learning_rate=1", "No GSNR optimizer has the argument 'learning_rate'"),
    ],
)
def test_a_form_that_makes_no_sense_is_refused(form, says):
    with pytest.raises(ValueError, match=says):
        contenders_of("adam", [parse_form(form)], 8)


# ---- settings -----------------------------------------------------------------------


def settings(**changed):
    values = {
        "task": PLANE, "batches": (64, 320), "optimizers": ("adam",),
        "forms": ("ceiling=1", "ceiling=10"), "trials": 5, "seeds": 2,
    }  # fmt: skip
    return Settings(**{**values, **changed})


@pytest.fixture(scope="module")
def plane():
    return load_task(PLANE)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"batches": (60,)}, "multiple of its 8 samples. Received: 60. Near it: 64"),
        ({"batches": (4000,)}, "4 epochs of 640 examples hold no batch of 4,000"),
        ({"samples": 1}, "k.*2 or more.*Received: k=1"),
        ({"ranks": 3}, r"multiple of the ranks \(3\). Received: k=8"),
        ({"forms": ("k=5",)}, "multiple of its 5 samples"),
        ({"trials": 2}, "three trials or more. Received: trials=2"),
        ({"seeds": 0}, "seeds starts at 1. Received: 0"),
        ({"optimizers": ("adagrad",)}, "adam, lamb.*Received: 'adagrad'"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_runs(
    plane, changed, says
):
    with pytest.raises(ValueError, match=says):
        check(settings(**changed), plane, plane.load())


def test_settings_that_can_work_pass(plane):
    check(settings(), plane, plane.load())


# ---- the study ----------------------------------------------------------------------


class Killed(Exception):
    pass


def pretend(study, die_after=math.inf):
    """A `train` whose results depend on its arguments alone, and a log of the calls."""
    calls = []

    def train(index, learning_rate, seed, final):
        if len(calls) >= die_after:
            raise Killed
        calls.append((study.cells[index].name, learning_rate, seed, final))
        best = 0.02 * (1 + index)
        score = abs(math.log(learning_rate / best)) + 0.001 * seed
        diverged = learning_rate > 10 * best
        history = [{"update": 4, "seconds": 1.0, "loss": 1.0, "validation": score}]
        result = {
            "diverged": diverged,
            "updates": 4,
            "seconds": 1.0,
            "validation": None if diverged else score,
            "history": history,
        }
        if final:
            result |= {"test": score + 0.1, "train": score}
        return result

    return train, calls


def work(study, train):
    for cell in study.cells:
        study.run_cell(cell, train, lambda row: None)


@pytest.fixture
def finished(tmp_path, plane):
    study = Study(settings(), tmp_path / "whole", plane)
    train, calls = pretend(study)
    work(study, train)
    return study, calls


def test_everyone_has_the_same_number_of_trials_and_seeds(finished):
    study, calls = finished
    assert len(study.cells) == 2 * 4
    for cell in study.cells:
        own = [call for call in calls if call[0] == cell.name]
        searched = [seed for _, _, seed, final in own if not final]
        scored = [seed for _, _, seed, final in own if final]
        assert searched == [SEARCH_SEED] * 5
        assert scored == [1, 2, 1, 2]
        assert study.runs_left(cell) == 0
    starts = collections.Counter(rate for _, rate, _, final in calls if not final)
    # The start and its two neighbours, for all eight.
    assert sorted(starts.values())[-3:] == [8, 8, 8]


def test_the_two_best_rates_of_the_search_run_with_other_seeds(finished):
    study, calls = finished
    for cell in study.cells:
        tried = study.tried(cell)
        rates = {rate for name, rate, _, final in calls if final and name == cell.name}
        assert sorted(map(tried.get, rates)) == sorted(tried.values())[:2]


def final(rate, seed, validation, test):
    return {
        "phase": "final", "optimizer": "adam", "batch": 64, "contender": "base",
        "samples": 8, "learning_rate": rate, "seed": seed,
        "diverged": validation is None, "validation": validation, "test": test,
    }  # fmt: skip


def test_validation_over_all_seeds_chooses_and_test_scores_do_not(plane):
    lucky = [final(0.1, 1, 0.2, 0.0), final(0.1, 2, 0.9, 0.0)]
    steady = [final(0.2, 1, 0.4, 9.0), final(0.2, 2, 0.4, 9.0)]
    searched = [
        {**final(rate, 0, 0.1 + rate, None), "phase": "search"} for rate in (0.1, 0.2)
    ]
    [chosen] = outcomes([*searched, *lucky, *steady], plane)
    assert (chosen.learning_rate, chosen.scores) == (0.2, [9.0, 9.0])
    diverging = [final(0.3, 1, 0.1, 0.0), final(0.3, 2, None, None)]
    [chosen] = outcomes([*searched, *diverging, *steady], plane)
    assert chosen.learning_rate == 0.2


def test_a_study_that_was_killed_goes_on_without_repeating_anything(
    finished, tmp_path, plane
):
    whole, all_calls = finished
    calls = []
    for die_after in (0, 1, 4, 13, math.inf):
        study = Study(settings(), tmp_path / "killed", plane)
        train, made = pretend(study, die_after)
        try:
            work(study, train)
        except Killed:
            pass
        calls += made
        del study, train  # as the end of a process would, this gives up the folder
        gc.collect()
    study = Study(settings(), tmp_path / "killed", plane)
    assert calls == all_calls
    assert study.rows() == whole.rows()
    lines = (tmp_path / "killed" / "results.jsonl").read_text().splitlines()
    by_text = sorted(map(json.dumps, whole.rows()))
    assert sorted(lines) == by_text


def test_a_folder_with_another_study_is_refused(finished, tmp_path, plane):
    with pytest.raises(ValueError, match="another study: trials is 5 there and 6 here"):
        Study(settings(trials=6), tmp_path / "whole", plane)


def test_a_folder_that_another_process_works_on_is_refused(finished, tmp_path, plane):
    # The first study of this process still has it.
    with pytest.raises(ValueError, match="Another process is working"):
        Study(settings(), tmp_path / "whole", plane)


def test_settings_come_back_from_the_folder(finished, tmp_path):
    assert Settings.read(tmp_path / "whole") == settings()


# ---- what it amounts to -------------------------------------------------------------


def outcome(contender, scores, batch=64, **changed):
    def run(score):
        if score is None:
            return {"diverged": True, "history": []}
        crossing = [
            {"update": 10, "seconds": 1.0, "validation": 0.1},
            {"update": 20, "seconds": 2.0, "validation": score},
        ]
        return {
            "diverged": False, "validation": score, "test": score,
            "train": score + 0.05, "history": crossing,
        }  # fmt: skip

    values = {
        "optimizer": "adam", "batch": batch, "contender": contender, "samples": 8,
        "rates": {0.1: 0.5, 0.2: 0.7, 0.4: 0.6}, "learning_rate": 0.2,
        "runs": tuple(map(run, scores)), "higher_is_better": True, "target": 0.7,
    }  # fmt: skip
    return Outcome(**{**values, **changed})


def test_a_miss_counts_as_infinite_and_stays_in_the_median():
    def steps(*scores):
        return outcome("base", scores).median_to_target("update")

    assert steps(0.8, 0.8, 0.6) == 20
    assert steps(0.8, 0.6, 0.6) == math.inf
    assert steps(0.8, 0.6) == math.inf
    assert steps(0.8, None, None) == math.inf
    assert outcome("base", [0.8], target=None).median_to_target("seconds") is None


def test_where_less_is_better_the_target_is_reached_from_above():
    low = outcome("base", [0.05], higher_is_better=False, target=0.08)
    assert low.median_to_target("seconds") == 2.0


def test_the_gap_is_positive_where_training_is_better():
    assert outcome("base", [0.8]).gaps == pytest.approx([0.05])
    assert outcome("base", [0.8], higher_is_better=False).gaps == pytest.approx([-0.05])


def test_beyond_the_spread_is_more_than_both_deviations():
    base = outcome("base", [0.70, 0.72])  # mean 0.71, deviation 0.0141
    assert beyond_the_spread(outcome("GSNR", [0.73, 0.75]), base) == "better"
    assert beyond_the_spread(outcome("GSNR", [0.725, 0.745]), base) == "level"
    assert beyond_the_spread(outcome("GSNR", [0.67, 0.69]), base) == "worse"
    assert beyond_the_spread(outcome("GSNR", [0.9]), base) is None
    assert beyond_the_spread(outcome("GSNR", [0.9, None]), base) == "worse"
    lower = outcome("base", [0.70, 0.72], higher_is_better=False)
    other = outcome("GSNR", [0.67, 0.69], higher_is_better=False)
    assert beyond_the_spread(other, lower) == "better"


def verdict(*found):
    [sentence] = verdicts(found)
    return sentence


def test_the_verdict_says_who_won_also_when_it_is_base():
    base = outcome("base", [0.70, 0.71])
    control = outcome("control", [0.76, 0.77])
    ahead = outcome("GSNR ceiling=1", [0.77, 0.78])
    behind = outcome("GSNR ceiling=10", [0.60, 0.61])
    won = verdict(base, control, ahead, behind)
    assert "GSNR is ahead beyond the spread, GSNR ceiling=1 0.7750" in won
    assert "Against the control (control 0.7650 ± 0.0071) it is not ahead" in won
    assert "base is ahead of every form beyond the spread" in verdict(base, behind)
    assert "no difference beyond the spread" in verdict(
        base, outcome("GSNR", [0.70, 0.72])
    )
    one_seed = verdict(outcome("base", [0.7]), outcome("GSNR", [0.9]))
    assert "One seed cannot tell" in one_seed
    assert "every run diverged" in verdict(
        outcome("base", [None]), outcome("GSNR", [None])
    )


def test_the_form_that_is_told_of_is_the_one_that_validation_prefers():
    """The best of several by test score would be in part the luckiest."""
    base = outcome("base", [0.70, 0.71])
    preferred = outcome("GSNR a", [0.60, 0.61])
    for run in preferred.runs:
        run["validation"] = 0.9
    lucky = outcome("GSNR b", [0.80, 0.81])
    assert "base is ahead of the form that validation prefers" in verdict(
        base, preferred, lucky
    )


def test_how_far_the_batch_can_grow():
    found = [
        outcome("base", [0.70, 0.71], 64), outcome("GSNR", [0.71, 0.72], 64),
        outcome("base", [0.60, 0.61], 320), outcome("GSNR", [0.70, 0.71], 320),
        outcome("control", [0.10, 0.11], 64), outcome("control", [0.10, 0.11], 320),
    ]  # fmt: skip
    [sentence] = reaches(found)
    assert "than base at 64: base 64; GSNR 320; control none." in sentence


def test_a_rate_on_the_edge_and_seeds_that_diverged_are_told():
    edge = outcome("base", [0.7, None], learning_rate=0.4)
    assert outcome("base", [0.7], learning_rate=0.1).on_the_edge
    sentences = list(cautions([edge, outcome("GSNR", [0.7, 0.7])]))
    assert len(sentences) == 2
    assert "0.4, lies at the edge" in sentences[0]
    assert "1 of 2 seeds diverged" in sentences[1]


def test_outcomes_are_read_from_the_rows_of_a_study(finished, plane):
    study, calls = finished
    found = outcomes(study.rows(), plane)
    assert [o.contender for o in found[:4]] == [
        "base", "control", "GSNR ceiling=1", "GSNR ceiling=10",
    ]  # fmt: skip
    for cell, o in zip(study.cells, found, strict=True):
        assert isinstance(cell.contender, Contender)
        assert len(o.rates) == 5 and len(o.runs) == 2
        finite = {rate: score for rate, score in o.rates.items() if score is not None}
        # Here a seed adds the same at all rates.
        assert o.learning_rate == min(finite, key=finite.get)
        assert o.gaps == pytest.approx([0.1, 0.1])
