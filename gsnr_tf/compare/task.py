"""What a study trains: one class, ours and the user's alike."""

import abc
import importlib.util
import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf


class Split(NamedTuple):
    """Rows of a data set.

    Attributes:
        features: NumPy array, or a dict or tuple of them, with one row an example.
        targets: The same, with as many rows.
    """

    features: object
    targets: object

    @property
    def rows(self):
        """How many examples there are, an int."""
        return len(tf.nest.flatten(self.features)[0])

    def head(self, rows):
        """The first `rows` examples."""
        return Split(*tf.nest.map_structure(lambda column: column[:rows], tuple(self)))


class Data(NamedTuple):
    """The three splits: to train, to choose by, and to score what was chosen.

    The first two are shared out anew for each seed (`Task.resplit`). By the test split
    nothing is ever chosen; it is the same for all.
    """

    train: Split
    validation: Split
    test: Split


class Task(abc.ABC):
    """Data, a model, and what a good model is.

    Attributes:
        metric: Name of what `score` returns, with its unit if it has one.
        higher_is_better: Whether a larger score is a better one.
        loss: A Keras loss or its name.
        epochs: Number, passes over the training split: what every run may spend,
            whatever its batch size.
        target: Score on the validation split whose time of arrival is measured, or
            `None`.
        learning_rates: Dict from an optimizer (`"adam"`, …) to the rate around which its
            first grid lies, for those whose usual one does not suit the task.
        regularizer: Name of what is tuned beside the learning rate, or `None`:
            "weight_decay", an argument of every optimizer, or an argument of
            `build_model`, such as "l2" or "dropout".
        l2_pattern: Where `regularizer` is an L2 of some variables, a regular expression of
            their paths. Optimizers of the GSNR family then get it as their argument `l2`,
            whose form a contender may name (`l2_form=gated`), and not by way of
            `build_model`; its value λ is the coefficient in the gradient, λθ. `None`: by
            way of `build_model` for all.
        regularizers: Tuple of its values in the first grid, ascending. 0 is no
            regularizer, beyond which the grid does not grow.
        regularizer_limit: Float, the largest value that may be tried.
        resplit: Whether each seed shares out training and validation rows anew. `False`
            where they must not mix, as rows of one document or one user.
        split: Int, which test split `load` is to take. A study that confirms what another
            has chosen asks for one by which nothing was chosen (`--split 1`).
        sizes: Dict from a name to a dict of attributes, which a size sets.
    """

    metric = "loss"
    higher_is_better = False
    loss = None
    epochs = 1
    target = None
    learning_rates = {}
    regularizer = None
    l2_pattern = None
    regularizers = (None,)
    regularizer_limit = math.inf
    resplit = True
    split = 0
    sizes = {"default": {}}

    def __init__(self, size="default"):
        if size not in self.sizes:
            raise ValueError(
                f"{type(self).__name__} comes in the sizes {', '.join(self.sizes)}. "
                f"Received: {size!r}"
            )
        vars(self).update(self.sizes[size])

    @abc.abstractmethod
    def load(self):
        """Returns the `Data`. The same at every call: it runs in several processes."""

    @abc.abstractmethod
    def build_model(self):
        """Returns a new `keras.Model`, not compiled. Called after `load`.

        Its weights come from Keras' seed, `keras.utils.set_random_seed`. It has one
        argument where `regularizer` names it.
        """

    def score(self, model, features, targets):
        """How good the compiled model is on these rows, a float: by default, its loss."""
        return model.evaluate(features, targets, batch_size=1000, verbose=0)

    def row_scores(self, model, features, targets):
        """The score of each row, a vector whose mean is the score, or `None`.

        For an interval by the rows of the test split, beside that by seeds.
        """
        return None

    def measures(self, model, features, targets):
        """Other figures of these rows, a dict from a name to a float: none by default.

        They are told beside the score, and nothing is chosen by them.
        """
        return {}

    def groups(self, features):
        """Whose row each is, such as the user: a vector of any values, or `None`.

        Rows of one group are not independent, and a live test shares out groups.
        """
        return None

    def better(self, one, other):
        """Whether score `one` is better than `other`."""
        return one > other if self.higher_is_better else one < other


def load_task(path, size="default"):
    """Makes the task that a Python file defines.

    Args:
        path: "file.py" with one subclass of `Task`, or "file.py:Class". The file's
            folder is put on the import path, as if the file were run.
        size: One of the class' `sizes`.

    Raises:
        ValueError: There is no such file or class, or the choice is not clear.
    """
    file, _, name = str(path).partition(":")
    file = Path(file)
    if file.suffix != ".py" or not file.is_file():
        raise ValueError(
            "A task is a Python file, `task.py` or `task.py:Class`. "
            f"Received: {str(path)!r}, and there is no such file."
        )
    found = _tasks_in(file)
    if name and name not in found:
        raise ValueError(f"{file} has no task {name!r}. It has: {', '.join(found) or 'none'}.")
    if not name and len(found) != 1:
        raise ValueError(
            f"{file} defines {len(found)} subclasses of gsnr_tf.compare.Task"
            + (f": say which, as in {file}:{next(iter(found))}." if found else ".")
            + (f" It has: {', '.join(found)}." if found else "")
        )
    return found[name or next(iter(found))](size)


def _tasks_in(file):
    """The concrete tasks that a file defines itself, by name."""
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, Task)
        and value.__module__ == module.__name__
        and not value.__abstractmethods__
    }


def check_regularizer(task):
    """Raises ValueError where a task does not say what is tuned beside the rate."""
    values = tuple(task.regularizers)
    if task.regularizer is None:
        if values != (None,):
            raise ValueError(
                f"{type(task).__name__} has regularizers={values} and no `regularizer`, "
                "the name of what they are values of: 'weight_decay' or an argument of "
                "build_model."
            )
        return
    if len(values) < 2 or values[0] < 0 or list(values) != sorted(set(values)):
        raise ValueError(
            f"{type(task).__name__}.regularizers must be two or more ascending numbers, "
            f"such as (0.0, 0.001, 0.01). Received: {values}"
        )


def check_split(task):
    """Raises ValueError where a task is asked for another test split and has but one."""
    asked, tests = task.split, []
    for task.split in (0, asked):
        tests.append(tf.nest.flatten(tuple(task.load().test)))
    if asked and all(map(np.array_equal, *tests)):
        raise ValueError(
            f"{type(task).__name__} has the same test split for --split {asked} as without: "
            "its `load` does not look at `self.split`."
        )


def checked(data):
    """The data, if it is what a study can use.

    Raises:
        TypeError: `load` returned something else than `Data` of `Split`.
        ValueError: A split is empty, or its columns differ in length.
    """
    if not isinstance(data, Data):
        raise TypeError(
            "Task.load returns a gsnr_tf.compare.Data(train, validation, test). "
            f"Received: {type(data).__name__}"
        )
    for name, split in zip(Data._fields, data):
        if not isinstance(split, Split):
            raise TypeError(
                f"The {name} split must be a gsnr_tf.compare.Split(features, targets). "
                f"Received: {type(split).__name__}"
            )
        rows = {len(np.asarray(column)) for column in tf.nest.flatten(tuple(split))}
        if len(rows) != 1 or not split.rows:
            raise ValueError(
                f"All columns of the {name} split need the same number of rows, at "
                f"least one. Received: {sorted(rows)}"
            )
    return data
