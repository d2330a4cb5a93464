"""The bookkeeping of a study, without the training."""

import contextlib
import gc
import json
import math
import re
from concurrent.futures import ThreadPoolExecutor, as_completed, wait

import numpy as np
import pytest

from gsnr_tf.compare import decision, paired, race
from gsnr_tf.compare.contenders import contenders_of, parse_form
from gsnr_tf.compare.outcomes import (
    Outcome,
    against_the_strongest,
    compared,
    comparisons,
    outcomes,
)
from gsnr_tf.compare.settings import NAMED, Settings, check
from gsnr_tf.compare.study import Study
from gsnr_tf.compare.task import load_task
from gsnr_tf.compare.verdicts import (
    beside_the_score,
    cautions,
    reaches,
    tallies,
    verdicts,
    what_it_takes,
)
from tests.processes import ROOT

PLANE = str(ROOT / "tests" / "integration" / "plane_task.py")


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


def test_the_control_may_be_left_out_where_there_is_a_base():
    kinds = {
        r: [c.kind for c in contenders_of(r, [{}], 8, control=False)] for r in ("adam", "lars")
    }
    assert kinds == {"adam": ["base", "gsnr"], "lars": ["control", "gsnr"]}


def test_base_and_control_are_always_there_but_lars_has_no_base():
    kinds = {rule: [c.kind for c in contenders_of(rule, [{}], 8)] for rule in ("adam", "lars")}
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
        ({"trials": 2}, "three learning rates or more. Received: trials=2"),
        ({"seeds": 0}, "seeds starts at 1. Received: 0"),
        ({"first_seed": 0}, "first_seed starts at 1. Received: 0"),
        ({"optimizers": ("adagrad",)}, "adam, lamb.*Received: 'adagrad'"),
        ({"baselines": ("lars",)}, "baselines are adam, .*muon. Received: 'lars'"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_runs(plane, changed, says):
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

    def train(index, regularizer, learning_rate, seed, whole):
        if len(calls) >= die_after:
            raise Killed
        calls.append((study.cells[index].name, regularizer, learning_rate, seed, whole))
        best = 0.2 * (1 + index)
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
        if whole and not diverged:
            result |= {"test": score + 0.1, "train": score}
        return result

    return train, calls


def work(study, train):
    study.work(train, lambda row: None)


@pytest.fixture
def finished(tmp_path, plane):
    study = Study(settings(), tmp_path / "whole", plane)
    train, calls = pretend(study)
    work(study, train)
    return study, calls


def test_everyone_at_a_batch_has_the_same_trials_and_seeds(finished):
    study, calls = finished
    assert len(study.groups) == 2 and len(study.cells) == 2 * 4
    for group in study.groups:
        tried = [
            {call[1:4] for call in calls if call[0] == cell.name and not call[4]}
            for cell in group.cells
        ]
        assert len(tried[0]) >= 5 * 2 * 2 and tried.count(tried[0]) == 4
        assert group.state().stage == "done" and group.left() == 0
    # The rates of the first grid lie around the task's own.
    assert {0.025, 0.05, 0.1, 0.2, 0.4} <= {call[2] for call in calls}
    assert len(calls) == len(set(calls)) == len(study.rows())


def test_a_study_that_confirms_has_seeds_of_its_own(tmp_path, plane):
    study = Study(settings(first_seed=101), tmp_path / "confirmed", plane)
    train, calls = pretend(study)
    work(study, train)
    assert {call[3] for call in calls} == {101, 102}
    assert all(o.by_seed.keys() == {101, 102} for o in outcomes(study, plane))


def test_baselines_are_tuned_on_grids_of_their_own(tmp_path, plane):
    study = Study(settings(baselines=("adamw", "lamb", "adam")), tmp_path / "bases", plane)
    kinds = [(c.contender.rule, c.contender.kind) for c in study.cells if c.batch == 64]
    forms = [("adam", kind) for kind in ("base", "control", "gsnr", "gsnr")]
    assert kinds == [*forms, ("adamw", "base"), ("lamb", "base")]
    grids = {group.name: group.plan.grid.values for group in study.groups}
    assert grids["lamb 64"] == grids["adam 64"] == (0.0, 0.01)
    assert grids["adamw 64"][-1] == 1.0
    train, _ = pretend(study)
    work(study, train)
    found = outcomes(study, plane)
    assert len(found) == len(study.cells)


def test_scores_of_the_test_split_choose_nothing(tmp_path, plane):
    chosen = []
    for test in (0.0, 5.0):
        study = Study(settings(), tmp_path / str(test), plane)
        train, _ = pretend(study)

        def other(index, regularizer, **run):
            result = train(index, regularizer, **run)
            if "test" in result:
                result["test"] = test * run["learning_rate"]
            return result

        work(study, other)
        chosen.append([group.state().chosen for group in study.groups])
    assert chosen[0] == chosen[1]


def test_a_study_that_was_killed_goes_on_without_repeating_anything(finished, tmp_path, plane):
    whole, all_calls = finished
    calls = []
    for die_after in (0, 1, 4, 13, math.inf):
        study = Study(settings(), tmp_path / "killed", plane)
        train, made = pretend(study, die_after)
        with contextlib.suppress(Killed):
            work(study, train)
        calls += made
        # As the end of a process would, this gives up the folder; and half a line stays.
        del study, train
        gc.collect()
        with open(tmp_path / "killed" / "results.jsonl", "a") as file:
            file.write('{"optimizer": "ad')
    study = Study(settings(), tmp_path / "killed", plane)
    # What was begun when it was killed is done again, in the same or another order.
    assert set(calls) == set(all_calls) and len(calls) == len(all_calls)
    key = json.dumps
    assert sorted(study.rows(), key=key) == sorted(whole.rows(), key=key)
    lines = (tmp_path / "killed" / "results.jsonl").read_text().splitlines()
    assert sorted(lines) == sorted(map(json.dumps, whole.rows()))


def test_several_workers_come_to_the_same(finished, tmp_path, plane):
    whole, _ = finished
    study = Study(settings(), tmp_path / "threads", plane)
    train, _ = pretend(study)
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(work, study, train) for _ in range(3)]:
            done.result(timeout=120)
    key = json.dumps
    assert sorted(study.rows(), key=key) == sorted(whole.rows(), key=key)
    assert [g.state() for g in study.groups] == [g.state() for g in whole.groups]


def test_a_worker_that_fails_ends_the_others(tmp_path, plane):
    study = Study(settings(), tmp_path / "failing", plane)
    train, _ = pretend(study, die_after=20)
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(work, study, train) for _ in range(2)]
        failed = next(as_completed(both, timeout=120))
        study._stop()
        wait(both, timeout=120)
    assert isinstance(failed.exception(), Killed)


def test_the_work_left_is_told(tmp_path, plane):
    study = Study(settings(), tmp_path / "told", plane)
    first = study.left()
    # Five rates, two values, two seeds, half of them to the end; and there are no more seeds.
    assert first == pytest.approx(8 * (5 * 2 * 2 / 3 + 5 * 2 * 2 / 3))
    train, _ = pretend(study)
    work(study, train)
    assert study.left() == 0 and study.spent >= first


def test_a_folder_with_another_study_is_refused(finished, tmp_path, plane):
    with pytest.raises(ValueError, match="another study: trials is 5 there and 6 here"):
        Study(settings(trials=6), tmp_path / "whole", plane)


def test_a_folder_that_another_process_works_on_is_refused(finished, tmp_path, plane):
    # The first study of this process still has it.
    with pytest.raises(ValueError, match="Another process is working"):
        Study(settings(), tmp_path / "whole", plane)


def test_settings_come_back_from_the_folder(finished, tmp_path):
    assert Settings.read(tmp_path / "whole") == settings()


# ---- what the study is about ----------------------------------------------------------


def test_what_is_named_in_advance():
    two = settings(optimizers=("adam", "lamb"))
    names = [(c.contender.rule, c.batch, c.contender.label) for c in two.named()]
    assert len(names) == NAMED == 6
    assert names[0] == ("adam", 64, "GSNR ceiling=1")
    assert names[-1] == ("lamb", 64, "GSNR ceiling=10")


@pytest.mark.parametrize(
    ("regularizer", "values", "says"),
    [
        (None, (0.0, 0.1), "no `regularizer`, the name"),
        ("l2", (0.1,), "two or more ascending numbers"),
        ("l2", (0.1, 0.0), r"Received: \(0.1, 0.0\)"),
        ("l2", (-0.1, 0.0), "two or more ascending numbers"),
    ],
)
def test_a_task_that_does_not_say_what_is_tuned_is_refused(plane, regularizer, values, says):
    task = type("Tuned", (type(plane),), {})()
    task.regularizer, task.regularizers = regularizer, values
    with pytest.raises(ValueError, match=says):
        check(settings(), task, task.load())


# ---- what it amounts to -------------------------------------------------------------


def outcome(contender, scores, batch=64, **changed):
    def run(seed, score):
        if score is None:
            return {"seed": seed, "diverged": True, "history": []}
        crossing = [
            {"update": 10, "seconds": 1.0, "validation": 0.1},
            {"update": 20, "seconds": 2.0, "validation": score},
        ]
        return {
            "seed": seed, "diverged": False, "updates": 10, "validation": score, "test": score,
            "train": score + 0.05, "history": crossing,
        }  # fmt: skip

    values = {
        "optimizer": "adam", "batch": batch, "contender": contender, "samples": 8,
        "rates": {0.1: 0.5, 0.2: 0.7, 0.4: 0.6}, "learning_rate": 0.2,
        "regularizer": 0.001, "edges": [], "higher_is_better": True, "target": 0.7,
        "runs": tuple(run(seed, score) for seed, score in enumerate(scores, start=1)),
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


BASE = [0.70, 0.71, 0.72, 0.73, 0.74]
AHEAD = [0.703, 0.714, 0.723, 0.734, 0.743]


def test_runs_are_compared_seed_by_seed():
    """The lead is far below the spread of either, and the same for each seed."""
    base, ahead = outcome("base", BASE), outcome("GSNR", AHEAD)
    found = compared(ahead, base)
    assert found.result == "ahead" and found.found.mean == pytest.approx(0.0034)
    assert compared(base, ahead).result == "behind"
    shuffled = outcome("GSNR", AHEAD[::-1])
    assert compared(shuffled, base).result == "level"
    less = [outcome(o.contender, o.scores, higher_is_better=False) for o in (ahead, base)]
    assert compared(*less).result == "behind"
    assert compared(outcome("GSNR", [0.9]), outcome("base", [0.7])).result is None


def test_who_leads_only_the_setting_that_base_chose_is_level():
    """An interval over seeds says nothing of how the choice of a setting fell."""
    near = outcome("base", [score + 0.002 for score in BASE], learning_rate=0.4)
    failing = outcome("base", [None, None, None, None, 0.9], learning_rate=0.8)
    base, form = outcome("base", BASE, beside=(near, failing)), outcome("GSNR", AHEAD)
    found = compared(form, base)
    assert found.p < 0.01 and found.result == "ahead"
    [(at, least)] = found.beside
    assert at is near and least.mean == pytest.approx(0.0014)
    nearer = outcome("base", AHEAD[::-1], learning_rate=0.1)
    found = compared(form, outcome("base", BASE, beside=(near, nearer)))
    assert found.p < 0.01 and found.result == "level" and found.least[0] is nearer
    [told] = verdicts([found])
    assert "level, +0.0034" in told
    assert "might have chosen as well, 0.1, 0.001: +0.0000 [-0.0393, +0.0393]" in told
    # Who is behind the chosen one is behind.
    worse = outcome("GSNR", [score - 0.01 for score in AHEAD])
    assert compared(worse, outcome("base", BASE, beside=(nearer,))).result == "behind"


def test_a_seed_that_diverged():
    base = outcome("base", BASE)
    assert compared(outcome("GSNR", [*AHEAD[:4], None]), base).result == "behind"
    both = [outcome(n, [*s[:4], None]) for n, s in (("GSNR", AHEAD), ("base", BASE))]
    assert compared(*both).found.seeds == 4 and compared(*both).result == "ahead"


def test_holm_is_among_those_that_were_named():
    base = outcome("base", BASE)
    forms = [outcome(f"GSNR {n}", [s + n * 1e-4 for s in AHEAD]) for n in range(3)]
    control = outcome("control", AHEAD)
    named = [("adam", 64, form.contender, 8) for form in forms[:2]]
    each = comparisons([base, control, *forms], named)
    assert [c.ours.contender for c in each] == ["GSNR 0", "GSNR 1", "GSNR 2", "control"]
    first, second, third, last = each
    assert [first.p, second.p] == paired.holm([first.found.p, second.found.p])
    assert first.named and second.named and not third.named
    assert first.p + second.p > first.found.p + second.found.p
    assert third.p == third.found.p and last.p == last.found.p


def test_the_rows_of_the_test_split_give_an_interval_of_their_own(tmp_path):
    rng = np.random.default_rng(0)
    shared, leads = rng.normal(size=500), []
    ours, base = outcome("GSNR", AHEAD), outcome("base", BASE)
    for name, found, lead in (("ours", ours, 0.3), ("base", base, 0.0)):
        for run in found.runs:
            run["rows"] = f"{name}-{run['seed']}.npy"
            own = lead + 0.1 * rng.normal(size=500)
            np.save(tmp_path / run["rows"], shared + own)
            leads.append(own.mean())
    low, high = compared(ours, base, tmp_path).rows
    # What all share falls out: 0.1·√(2/5) of each row is left, over 500 rows.
    assert low < np.mean(leads[:5]) - np.mean(leads[5:]) < high
    half = 1.96 * 0.1 * np.sqrt(2 / 5 / 500)
    assert (high - low) / 2 == pytest.approx(half, rel=0.2)
    assert compared(ours, base).rows is None
    del base.runs[0]["rows"]
    assert compared(ours, base, tmp_path).rows is None


def verdict(*found, named=("GSNR",)):
    each = comparisons(found, [("adam", 64, name, 8) for name in named])
    return list(verdicts(each))


def test_the_verdict_says_who_won_also_when_it_is_base():
    base, control = outcome("base", BASE), outcome("control", BASE[::-1])
    ahead, behind = outcome("GSNR", AHEAD), outcome("GSNR b", [s - 0.1 for s in AHEAD])
    won, lost, checked = verdict(base, control, ahead, behind)
    assert won.startswith("adam, batch 64: GSNR against base: ahead, +0.0034 [+0.0027, +0.0041]")
    assert "over 5 seeds, p 0.000 (Holm), sign flips 0.062." in won
    assert "GSNR b against base (exploratory): behind, -0.0966" in lost
    assert "control against base (exploratory): level" in checked
    [alone] = verdict(outcome("base", [0.7]), outcome("GSNR", [0.9]))
    assert "one seed cannot tell" in alone
    [none] = verdict(outcome("base", BASE), outcome("GSNR", [None, None]))
    assert "every run of GSNR diverged" in none


def test_a_form_that_is_in_several_comparisons_is_counted():
    found = [
        *(outcome("base", BASE, 64), outcome("GSNR", AHEAD, 64)),
        *(outcome("base", BASE, 320), outcome("GSNR", BASE[::-1], 320)),
    ]
    assert list(tallies(comparisons(found))) == ["GSNR: ahead in 1 of 2 comparisons, behind in 0."]


def test_the_strongest_base_is_that_with_the_best_validation_score():
    """Not the best test score: by that nothing is chosen."""
    adam, form = outcome("base", BASE), outcome("GSNR", AHEAD)
    nadam = outcome("base", [score + 0.01 for score in BASE], optimizer="nadam")
    for run in nadam.runs:
        run["test"] -= 0.02
    muon = outcome("base", [0.9, None], optimizer="muon")
    elsewhere = outcome("base", [0.95, 0.96], 320, optimizer="nadam")
    found = [adam, form, nadam, muon, elsewhere]
    [comparison] = against_the_strongest(found)
    assert comparison.theirs is nadam and comparison.result == "ahead" and not comparison.named
    [told] = verdicts([comparison])
    assert "GSNR against nadam, the strongest base (exploratory): ahead, +0.0134" in told
    # With its own base it is compared anyway.
    assert against_the_strongest([adam, form]) == []


def test_other_measures_are_compared_seed_by_seed():
    base, form = outcome("base", BASE), outcome("GSNR", AHEAD)
    for number, runs in enumerate(zip(base.runs, form.runs)):
        for run, less in zip(runs, (0.0, 0.01)):
            run["measures"] = {"log loss": 0.5 + 0.1 * number - less, "by user": float("nan")}
    each = comparisons([base, form], [("adam", 64, "GSNR", 8)])
    assert each[0].measures.keys() == {"log loss"}
    [told] = beside_the_score(each)
    assert told == "adam, batch 64: GSNR − base: log loss -0.0100 [-0.0100, -0.0100]."
    assert list(beside_the_score(comparisons([base, form]))) == []


def test_what_a_difference_takes_to_be_seen(tmp_path):
    base, form = outcome("base", BASE), outcome("GSNR", AHEAD)
    rng, shared = np.random.default_rng(0), np.random.default_rng(1).normal(size=400)
    for found in (base, form):
        for run in found.runs:
            run["rows"] = f"{found.contender}-{run['seed']}.npy"
            np.save(tmp_path / run["rows"], shared + 0.01 * rng.normal(size=400))
    each = comparisons([base, form], [("adam", 64, "GSNR", 8)], tmp_path)
    [told] = what_it_takes(each, np.arange(400) % 40, tmp_path)
    assert told.startswith("adam, batch 64: to see +0.0034 of GSNR with 80 % takes 3 seeds; ")
    live, both = [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) groups", told)]
    assert live > 100 * both
    [alone] = what_it_takes(each)
    assert "users" not in alone


def test_the_share_of_noise_is_that_of_the_second_half():
    form = outcome("GSNR", [0.7, 0.7])
    assert form.noise is None
    for run, share in zip(form.runs, (0.2, 0.4)):
        run["history"] = [{"noise": 0.0}, {"noise": share}]
    assert form.noise == pytest.approx(0.3)


def test_how_far_the_batch_can_grow():
    worse = [score - 0.1 for score in AHEAD]
    found = [
        outcome("base", BASE, 64), outcome("GSNR", AHEAD, 64),
        outcome("base", worse, 320), outcome("GSNR", BASE[::-1], 320),
        outcome("control", worse, 64), outcome("control", worse, 320),
    ]  # fmt: skip
    [sentence] = reaches(found)
    assert "not behind base at 64" in sentence
    [_, base, form, control] = re.split(r": (?=base)|; ", sentence)
    assert base == "base 64 (10 updates a run, 20 to the target)"
    assert form.startswith("GSNR 320 (+0.0000 [-0.0393, +0.0393], 10 updates a run, ")
    assert control == "control none."


def test_one_page_says_what_a_larger_batch_saves(finished, plane):
    study, calls = finished
    worse = [score - 0.1 for score in AHEAD]
    found = [
        outcome("base", BASE, 64), outcome("GSNR", AHEAD, 64), outcome("base", worse, 320),
        outcome("GSNR", BASE[::-1], 320), outcome("control", worse, 64),
    ]  # fmt: skip
    for each in found:
        for run in each.runs:
            run |= {"updates": 640 // each.batch, "seconds": 3600.0 * (64 / each.batch)}
    text = decision.page(study, plane, found)
    assert "reference: base, 0.7200 | 64 | | 10 | 1 | 1 |" in text
    assert "| GSNR | 320 | +0.0000 [-0.0393, +0.0393] | 2 | 0.2 | 0.2 | 80% of updates" in text
    assert "| control | none |" in text
    # A run that went on is one training, not one and a third.
    whole = {call[:4] for call in calls if call[4]}
    thirds = {call[:4] for call in calls} - whole
    assert f"took {len(whole) + len(thirds) / 3:,.0f} trainings in all for 8 " in text


def test_a_setting_at_the_end_and_seeds_that_diverged_are_told():
    edge = outcome("base", [0.7, None], edges=["learning rate", "regularizer"])
    sentences = list(cautions([edge, outcome("GSNR", [0.7, 0.7])]))
    assert len(sentences) == 3
    assert "the best learning rate, 0.2, lies at the end" in sentences[0]
    assert "the best regularizer, 0.001, lies at the end" in sentences[1]
    assert "1 of 2 seeds diverged" in sentences[2]


def test_outcomes_are_read_from_a_study(finished, plane):
    study, _ = finished
    found = outcomes(study, plane)
    assert [len(o.beside) for o in found[:4]] == [race.FEW - 1, 0, 0, 0]
    assert {o.learning_rate for o in found[0].beside} != {found[0].learning_rate}
    assert all(len(other.runs) == 2 for other in found[0].beside)
    assert [o.contender for o in found[:4]] == [
        "base", "control", "GSNR ceiling=1", "GSNR ceiling=10",
    ]  # fmt: skip
    for index, o in enumerate(found):
        # Where the best rate of any lies between two of the grid, either is chosen.
        best = 0.2 * (1 + index)
        assert 1 / race.STRIDE < o.learning_rate / best < race.STRIDE
        assert [run["seed"] for run in o.runs] == [1, 2] and not o.edges
        assert o.rates[o.learning_rate] is not None and None in o.rates.values()
        assert o.gaps == pytest.approx([0.1, 0.1])


def test_a_race_under_way_has_no_outcome(tmp_path, plane):
    study = Study(settings(), tmp_path / "begun", plane)
    train, _ = pretend(study, die_after=40)
    with pytest.raises(Killed):
        work(study, train)
    assert outcomes(study, plane) == []
