"""What a task is, how it is found, and how it is trained."""

import re
import types

import keras
import numpy as np
import pytest

from gsnr_tf.compare import Data, Split, Task, load_task
from gsnr_tf.compare.contenders import Contender, contenders_of
from gsnr_tf.compare.task import check_split, checked
from gsnr_tf.compare.training import Splits, Trainer, _Paused, tuned, values_of
from gsnr_tf.schedules import WarmupCosine
from tests.processes import ROOT

PLANE = ROOT / "tests" / "integration" / "plane_task.py"
EMPTY = "from gsnr_tf.compare import Task\n"
TASK = "class {}(Task):\n    def load(self): ...\n    def build_model(self): ...\n"


def write(folder, *names):
    file = folder / "some_task.py"
    file.write_text(EMPTY + "".join(map(TASK.format, names)))
    return file


def test_a_file_with_one_task_needs_no_name(tmp_path):
    assert type(load_task(write(tmp_path, "One"))).__name__ == "One"


def test_one_of_several_is_named(tmp_path):
    file = write(tmp_path, "One", "Two")
    assert type(load_task(f"{file}:Two")).__name__ == "Two"
    with pytest.raises(ValueError, match=r"defines 2 .*say which.*:One.*One, Two"):
        load_task(file)
    with pytest.raises(ValueError, match="has no task 'Three'. It has: One, Two"):
        load_task(f"{file}:Three")


@pytest.mark.parametrize("path", ["missing.py", "movielens", "."])
def test_what_is_no_file_is_refused(path):
    with pytest.raises(ValueError, match="A task is a Python file.*Received"):
        load_task(path)


def test_a_size_sets_attributes_and_others_are_refused():
    class Sized(Task):
        sizes = {"default": {"width": 2}, "large": {"width": 9, "epochs": 7}}

        def load(self): ...
        def build_model(self): ...

    assert (Sized().width, Sized().epochs) == (2, 1)
    assert (Sized("large").width, Sized("large").epochs) == (9, 7)
    with pytest.raises(ValueError, match="sizes default, large. Received: 'huge'"):
        Sized("huge")


def split(rows=4, targets=None):
    return Split({"x": np.zeros([rows, 2])}, np.zeros(rows if targets is None else targets))


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (([], [], []), TypeError, r"returns a .*Data.*Received: tuple"),
        (
            Data(split(), split(), (1, 2)),
            TypeError,
            "test split must be.*Received: tuple",
        ),
        (
            Data(split(), split(4, 3), split()),
            ValueError,
            r"validation.*Received: \[3, 4\]",
        ),
        (Data(split(0), split(), split()), ValueError, r"train.*Received: \[0\]"),
    ],
)
def test_data_that_does_not_fit_is_refused(data, error, says):
    with pytest.raises(error, match=says):
        checked(data)


def test_data_that_fits_is_returned():
    data = Data(split(), split(), split())
    assert checked(data) is data


def test_another_test_split_must_be_another():
    class OneSplit(Task):
        tests = 1

        def load(self):
            test = np.arange(4) + self.split % self.tests
            return Data(split(), split(), Split(test, test))

        def build_model(self): ...

    task = OneSplit()
    check_split(task)
    task.split = 1
    with pytest.raises(ValueError, match="same test split for --split 1.*self.split"):
        check_split(task)
    assert task.split == 1
    task.tests = 2
    check_split(task)


def test_the_example_of_the_readme_is_a_task_that_learns(tmp_path):
    text = (ROOT / "gsnr_tf" / "compare" / "README.md").read_text()
    [example] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(example.splitlines()) <= 30
    file = tmp_path / "parity.py"
    file.write_text(example)
    task = load_task(file)
    data = checked(task.load())
    trainer = Trainer(task, data, contenders_of("adam", [], 2)[0], batch=60)
    result = trainer.run(0.01, seed=0, evaluations=2)
    assert result["history"][0]["validation"] < result["validation"] > 0.6


# ---- training ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def plane():
    task = load_task(PLANE)
    return task, task.load()


def gsnr_adam(samples=4):
    return contenders_of("adam", [{"ceiling": 10.0}], samples)[-1]


def train(plane, batch=64, contender=None):
    return Trainer(*plane, contender or gsnr_adam(), batch)


def plain(result):
    """A result without what is a matter of the clock."""
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in result["history"]]
    scores = result.get("row_scores")
    changed = {"seconds": 0, "history": rows, "row_scores": scores is not None and scores.tolist()}
    return result | changed


def test_a_second_run_is_the_first_once_more_and_that_of_a_new_model(plane):
    trainer = train(plane)
    first = trainer.run(0.1, seed=3)
    other = trainer.run(0.2, seed=4)
    again = trainer.run(0.1, seed=3)
    anew = train(plane).run(0.1, seed=3)
    assert plain(first) == plain(again) == plain(anew)
    assert first["test"] != other["test"]


def test_a_run_that_stopped_after_a_third_goes_on_as_if_it_had_not(plane):
    """And others in between leave it alone."""
    whole = train(plane).run(0.1, seed=3)
    trainer = train(plane)
    third = trainer.run(0.1, seed=3, whole=False)
    assert third["updates"] == round(40 / 3) and not {"test", "train"} & third.keys()
    assert plain(third)["history"] == plain(whole)["history"][:3]
    trainer.run(0.2, seed=4, whole=False)
    trainer.run(0.1, seed=4)
    weights = trainer._model.get_weights()
    found = trainer.run(0.1, seed=3)
    assert plain(found) == plain(whole) and found["seconds"] > third["seconds"]
    assert (weights[0] != trainer._model.get_weights()[0]).any()
    # From the start where nothing was kept, as after a kill.
    assert plain(trainer.run(0.1, seed=3)) == plain(whole)


def test_what_is_kept_of_runs_that_stopped_has_a_limit():
    kept = _Paused(limit=100)
    for number in range(3):
        kept.keep(number, number, [np.zeros(5, "float64")])
    assert kept.take(0) is None and kept.take(2)[0] == 2 and kept.take(2) is None


def test_it_trains_as_fit_does(plane):
    """On the same micro-batches, under the same schedule, from the same weights."""
    task, data = plane
    trainer = train(plane)
    found = trainer.run(0.1, seed=5, evaluations=1)

    keras.utils.set_random_seed(5)
    model = task.build_model()
    schedule = WarmupCosine(0.1, 40)
    model.compile(optimizer=gsnr_adam().optimizer(schedule, 4), loss=task.loss)
    orders = [np.random.default_rng([5, epoch]).permutation(640) for epoch in range(4)]
    own, rows = Splits(data, True).train(5), np.concatenate(orders)
    model.fit(own.features[rows], own.targets[rows], batch_size=16, shuffle=False, verbose=0)
    np.testing.assert_allclose(found["test"], task.score(model, *data.test), rtol=1e-5)


def test_each_seed_shares_out_training_and_validation_rows_anew(plane):
    _, data = plane
    splits = Splits(data, True)
    numbers = [splits.rows(seed) for seed in (1, 2, 1)]
    for train_rows, validation_rows in numbers:
        assert len(train_rows) == 640
        assert sorted([*train_rows, *validation_rows]) == list(range(800))
    assert set(numbers[0][1]) != set(numbers[1][1])
    np.testing.assert_array_equal(numbers[0][1], numbers[2][1])
    features = data.test.features
    assert splits.test.features is features
    # No row of the test split is among them.
    assert not {row.tobytes() for row in splits.pool.features} & {r.tobytes() for r in features}
    own = Splits(data, False)
    np.testing.assert_array_equal(own.train(1).features, data.train.features)
    np.testing.assert_array_equal(own.validation(2).targets, data.validation.targets)


def test_every_epoch_sees_every_row_once_also_where_batches_cross_its_end(plane):
    trainer = train(plane, batch=96)
    assert trainer.updates == 4 * 640 // 96
    rows = np.concatenate([trainer._rows(7, update) for update in range(trainer.updates)])
    for epoch in range(4):
        seen = rows[640 * epoch : 640 * (epoch + 1)]
        assert len(set(seen)) == len(seen)
    assert set(rows[:640]) == set(trainer._splits.rows(7)[0])
    assert (rows[:640] != rows[640:1280]).any()


def test_a_run_that_stops_early_does_not_see_the_test_split(plane):
    task, data = plane
    scored = []

    class Watched(type(task)):
        def score(self, model, features, targets):
            scored.append(features)
            return super().score(model, features, targets)

    trainer = Trainer(Watched(), data, gsnr_adam(), 64)
    trainer.run(0.1, seed=1, whole=False)
    own = Splits(data, True).validation(1).features
    assert scored and all((features == own).all() for features in scored)
    trainer.run(0.1, seed=1)
    assert any(features is data.test.features for features in scored)


def test_a_run_that_diverges_is_a_result_and_leaves_the_next_one_alone(plane):
    momentum = contenders_of("momentum", [], 4)[0]
    trainer = train(plane, contender=momentum)
    good = trainer.run(0.001, seed=0)
    bad = trainer.run(1e30, seed=0)
    assert bad["diverged"] and bad["validation"] is None and "test" not in bad
    assert bad["updates"] < trainer.updates
    again = trainer.run(0.001, seed=0)
    assert not again["diverged"]
    assert again["validation"] == good["validation"]


def test_the_share_of_noise_is_told_where_samples_are_seen(plane):
    """Near the end of training the plane's gradient is mostly noise; at its start it is not."""
    history = train(plane).run(0.1, seed=1)["history"]
    assert 0 < history[0]["noise"] < 0.2 < history[-1]["noise"]
    base = train(plane, contender=contenders_of("adam", [], 4)[0])
    assert {row["noise"] for row in base.run(0.1, seed=1)["history"]} == {None}


# ---- what is tuned beside the rate ------------------------------------------------


@pytest.mark.parametrize("name", ["weight_decay", "l2"])
def test_the_regularizer_of_a_task_is_every_contenders(plane, name):
    """Strong enough, it takes all weight from any of them."""
    task, data = plane

    class Tuned(type(task)):
        regularizer, regularizers = name, (0.0, 1.0)

        def build_model(self, l2=0.0):
            dense = keras.layers.Dense(1, kernel_regularizer=keras.regularizers.L2(l2))
            return keras.Sequential([keras.Input((8,)), dense])

    for contender in contenders_of("adam", [{"ceiling": 10.0}], 4):
        norms = []
        for value in (0.0, 5.0):
            trainer = Trainer(Tuned(), data, contender, 64, value)
            trainer.run(0.1, seed=1)
            norms.append(np.linalg.norm(trainer._model.get_weights()[0]))
        assert norms[1] < 0.7 * norms[0]


def test_adamw_is_tuned_by_its_own_decay(plane):
    """Whatever the task's regularizer is: with an L2 in the loss it would be Adam."""
    task = types.SimpleNamespace(regularizer="l2", regularizers=(0.1, 0.2), l2_pattern=None)
    adamw = Contender("adamw", "base", 4)
    assert tuned(task, adamw, 0.3) == ({}, {"weight_decay": 0.3})
    assert values_of(task, "adamw") == (0.1, 0.3, 1.0) and values_of(task, "nadam") == (0.1, 0.2)
    alone = types.SimpleNamespace(regularizer=None, regularizers=(None,))
    assert tuned(alone, adamw, None) == ({}, {}) and values_of(alone, "adamw") == (None,)
    norms = []
    for decay in (0.0, 3.0):
        trainer = Trainer(*plane, adamw, 64, decay)
        trainer.run(0.1, seed=1)
        norms.append(np.linalg.norm(trainer._model.get_weights()[0]))
    assert norms[1] < 0.9 * norms[0]


@pytest.mark.parametrize(("name", "rate"), [("nesterov", 0.05), ("muon", 0.5)])
def test_every_baseline_learns(plane, name, rate):
    found = Trainer(*plane, Contender(name, "base", 4), 64).run(rate, seed=1)
    assert found["validation"] < 0.5 * found["history"][0]["validation"]


def test_a_form_keeps_what_it_says_of_the_regularizer_itself():
    own = Contender("adam", "gsnr", 4, (("weight_decay", 0.5),))
    assert own.optimizer(0.1, 4, weight_decay=0.1).weight_decay == 0.5


def test_scores_of_single_rows_are_those_of_the_test_split(plane):
    task, data = plane

    class Without(type(task)):
        row_scores = Task.row_scores

    result = train(plane).run(0.1, seed=1)
    assert len(result["row_scores"]) == data.test.rows
    assert result["row_scores"].mean() == pytest.approx(result["test"], rel=1e-5)
    trainer = Trainer(Without(), data, gsnr_adam(), 64)
    assert trainer.run(0.1, seed=1)["row_scores"] is None


@pytest.mark.parametrize(
    "kind, of_model, of_optimizer",
    [
        ("base", {"l2": 0.5}, {}),
        ("control", {}, {"l2": {"table": 0.5}}),
        ("gsnr", {}, {"l2": {"table": 0.5}}),
    ],
)
def test_decay_belongs_to_the_step_where_the_optimizer_has_an_argument(
    kind, of_model, of_optimizer
):
    task = types.SimpleNamespace(regularizer="l2", l2_pattern="table")
    contender = Contender("adam", kind, 8)
    assert tuned(task, contender, 0.5) == (of_model, of_optimizer)
    task.l2_pattern = None
    assert tuned(task, contender, 0.5) == ({"l2": 0.5}, {})
    task.regularizer = "weight_decay"
    assert tuned(task, contender, 0.5) == ({}, {"weight_decay": 0.5})
