"""What a task is, how it is found, and how it is trained."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from gsnr_tf.compare import Data, Split, Task, load_task
from gsnr_tf.compare.contenders import contenders_of
from gsnr_tf.compare.task import checked
from gsnr_tf.compare.training import Trainer
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
    return Split(
        {"x": np.zeros([rows, 2])}, np.zeros(rows if targets is None else targets)
    )


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


def test_a_second_run_is_the_first_once_more_and_that_of_a_new_model(plane):
    trainer = train(plane)
    first = trainer.run(0.1, seed=3, final=True)
    other = trainer.run(0.2, seed=4, final=True)
    again = trainer.run(0.1, seed=3, final=True)
    anew = train(plane).run(0.1, seed=3, final=True)
    for result in (first, other, again, anew):
        for row in (result, *result["history"]):
            row.pop("seconds")
    assert first == again == anew
    assert first["test"] != other["test"]


def test_it_trains_as_fit_does(plane):
    """On the same micro-batches, under the same schedule, from the same weights."""
    task, data = plane
    trainer = train(plane)
    found = trainer.run(0.1, seed=5, evaluations=1, final=True)

    keras.utils.set_random_seed(5)
    model = task.build_model()
    schedule = WarmupCosine(0.1, 40)
    model.compile(optimizer=gsnr_adam().optimizer(schedule, 4), loss=task.loss)
    orders = [np.random.default_rng([5, epoch]).permutation(640) for epoch in range(4)]
    rows = np.concatenate(orders)
    model.fit(
        data.train.features[rows], data.train.targets[rows], batch_size=16,
        shuffle=False, verbose=0,
    )  # fmt: skip
    np.testing.assert_allclose(found["test"], task.score(model, *data.test), rtol=1e-5)


def test_every_epoch_sees_every_row_once_also_where_batches_cross_its_end(plane):
    trainer = train(plane, batch=96)
    assert trainer.updates == 4 * 640 // 96
    rows = np.concatenate(
        [trainer._rows(7, update) for update in range(trainer.updates)]
    )
    for epoch in range(4):
        seen = rows[640 * epoch : 640 * (epoch + 1)]
        assert len(set(seen)) == len(seen)
    assert set(rows[:640]) == set(range(640))
    assert (rows[:640] != rows[640:1280]).any()


def test_a_run_that_chooses_does_not_see_the_test_split(plane):
    task, data = plane
    scored = []

    class Watched(type(task)):
        def score(self, model, features, targets):
            scored.append(features)
            return super().score(model, features, targets)

    trainer = Trainer(Watched(), data, gsnr_adam(), 64)
    result = trainer.run(0.1, seed=0, evaluations=2)
    assert not {"test", "train"} & result.keys()
    assert all(features is data.validation.features for features in scored)
    trainer.run(0.1, seed=0, evaluations=2, final=True)
    assert any(features is data.test.features for features in scored)


def test_a_run_that_diverges_is_a_result_and_leaves_the_next_one_alone(plane):
    momentum = contenders_of("momentum", [], 4)[0]
    trainer = train(plane, contender=momentum)
    good = trainer.run(0.001, seed=0)
    bad = trainer.run(1e30, seed=0, final=True)
    assert bad["diverged"] and bad["validation"] is None and "test" not in bad
    assert bad["updates"] < trainer.updates
    again = trainer.run(0.001, seed=0)
    assert not again["diverged"]
    assert again["validation"] == good["validation"]
