"""Tables of optimizers and of samples: a new optimizer is one row."""

import functools
import operator
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

import gsnr_tf
from tests import reference


class Row(NamedTuple):
    """An optimizer, its reference, and arguments that both constructors take."""

    optimizer: type
    reference: type
    arguments: dict = {}

    def make(self, **more):
        return self.optimizer(**{**self.arguments, **more})

    def make_reference(self, **more):
        return self.reference(**{**self.arguments, **more})


# Learning rates are powers of two: Keras keeps them in float32.
OPTIMIZERS = {
    "sgd": Row(gsnr_tf.GSNRSGD, reference.SGD, {"learning_rate": 0.125}),
    "adam": Row(gsnr_tf.GSNRAdam, reference.Adam, {"learning_rate": 0.125}),
    "nadam": Row(gsnr_tf.GSNRNadam, reference.Nadam, {"learning_rate": 0.125}),
    "lamb": Row(gsnr_tf.GSNRLamb, reference.Lamb, {"learning_rate": 0.125}),
    "lars": Row(
        gsnr_tf.GSNRLars,
        reference.Lars,
        {"learning_rate": 0.5, "trust_coefficient": 0.25},
    ),
}


def variant(name, **arguments):
    row = OPTIMIZERS[name]
    return row._replace(arguments={**row.arguments, **arguments})


VARIANTS = {
    **OPTIMIZERS,
    "momentum": variant("sgd", momentum=0.9),
    "nesterov": variant("sgd", momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam decay": variant("adam", weight_decay=0.1, exclude_from_weight_decay=["bias|gain"]),
    "adam raw": variant("adam", second_moment="raw", ceiling=10.0),
    "adam robust": variant("adam", estimator="robust"),
    "lamb robust": variant("lamb", estimator="robust", second_moment="adapted", ceiling=2.0),
    "lars robust": variant("lars", estimator="robust", gamma=0.5),
    "lamb decay": variant("lamb", weight_decay=0.1, ceiling=10.0),
    "lamb all": variant(
        "lamb",
        weight_decay=0.1,
        exclude_from_weight_decay=[],
        exclude_from_layer_adaptation=[],
    ),
    "lars decay": variant("lars", weight_decay=0.1, ceiling=10.0, gamma=0.5),
    "sgd l2": variant("sgd", l2=0.25),
    "nesterov l2 inside": variant(
        "sgd", momentum=0.9, nesterov=True, l2={"kernel": 0.25}, l2_form="inside"
    ),
    "adam l2": variant("adam", l2=0.1, estimator="robust"),
    "adam l2 adapted": variant("adam", l2=0.1, second_moment="adapted", ceiling=10.0),
    "adam gated": variant("adam", gamma=1.0, l2={"kernel|embeddings": 0.1}, l2_form="gated"),
    "nadam l2": variant("nadam", l2=0.1, estimator="robust"),
    "lamb l2": variant("lamb", l2=0.1, exclude_from_weight_decay=[], weight_decay=0.1),
    "lars gated": variant(
        "lars", l2=0.1, l2_form="gated", exclude_from_weight_decay=[], estimator="robust"
    ),
    "lars all": variant("lars", exclude_from_layer_adaptation=[], momentum=0.0),
}


class Problem(NamedTuple):
    """Variables, and the samples of several updates: `samples[update][i][variable]`."""

    names: list
    weights: list
    samples: list

    def variables(self, dtype="float32"):
        return [
            keras.Variable(w.astype(dtype), dtype=dtype, name=n)
            for n, w in zip(self.names, self.weights)
        ]


def _samples(rng, shapes, k=4, updates=3):
    def one_update():
        # Means away from 0, whose digits float32 would lose in the sum.
        means = [rng.choice([-1, 1], s) * rng.uniform(0.5, 1.5, s) for s in shapes]
        noise = [rng.lognormal(-1, 0.7, s) for s in shapes]
        return [
            [(m + n * rng.normal(size=m.shape)).astype("float32") for m, n in zip(means, noise)]
            for _ in range(k)
        ]

    return [one_update() for _ in range(updates)]


def _problem(edit=None, seed=0, **shapes):
    rng = np.random.default_rng(seed)
    weights = [rng.normal(size=shape).astype("float32") for shape in shapes.values()]
    samples = _samples(rng, list(shapes.values()))
    if edit:
        samples = [[[edit(i, g) for g in one] for i, one in enumerate(u)] for u in samples]
        for update in samples:
            # What all samples share is the first one's.
            for one in update:
                for g, shared in zip(one, update[0]):
                    g[np.isnan(g)] = shared[np.isnan(g)] = 0.75
    return Problem(list(shapes), weights, samples)


def _zero_rows(_, g):
    return np.where(np.arange(len(g))[:, None] % 3 == 1, 0, g).astype("float32")


def _agree_somewhere(_, g):
    return np.where(np.arange(g.size).reshape(g.shape) % 4 == 1, np.nan, g).astype("float32")


PROBLEMS = {
    "matrix": _problem(kernel=(7, 5)),
    "vector": _problem(bias=(9,)),
    "scalar": _problem(scale=()),
    "conv kernel": _problem(kernel=(3, 3, 2, 4)),
    "zero rows": _problem(_zero_rows, embeddings=(8, 3)),
    "all zero": _problem(lambda _, g: 0 * g, kernel=(3, 2)),
    "some agree": _problem(_agree_somewhere, kernel=(6, 4)),
    "all agree": _problem(lambda _, g: np.nan * g, kernel=(4, 3)),
    "model": _problem(kernel=(5, 4), bias=(4,), gain=()),
}

# A table, and what stands on it; two tables of one width share a bucket.
TABLES = _problem(
    lambda i, g: _zero_rows(i, g) if len(g) == 11 else g,
    embeddings=(11, 5),
    kernel=(5, 4),
    bias=(4,),
)

# What is judged by row.
ROWS = {
    f"{name} {estimator} {form}": variant(
        name,
        estimator=estimator,
        granularity="row",
        l2={"embeddings": 0.1},
        l2_form=form,
        **({"momentum": 0.9} if name == "sgd" else {}),
    )
    for name in ("sgd", "adam", "lamb")
    for estimator in ("paper", "robust", "james_stein")
    for form in ("inside", "outside", "gated")
}

# All of them as variables of one model: most tests need no more.
EVERYTHING = Problem(
    [f"{name}.{v}".replace(" ", "_") for name, p in PROBLEMS.items() for v in p.names],
    [w for p in PROBLEMS.values() for w in p.weights],
    [
        [
            functools.reduce(operator.iadd, parts, [])
            for parts in zip(*(p.samples[update] for p in PROBLEMS.values()))
        ]
        for update in range(3)
    ],
)


def feed(optimizer, variables, samples, counts=None):
    """One update: every sample is one call of `apply_gradients`."""
    for index, sample in enumerate(samples):
        gradients = [tf.convert_to_tensor(g, v.dtype) for g, v in zip(sample, variables)]
        if counts is None:
            optimizer.apply_gradients(zip(gradients, variables))
        else:
            optimizer.apply_gradients(zip(gradients, variables), examples=counts[index])


def values(variables):
    return [keras.ops.convert_to_numpy(v) for v in variables]


def assert_close(found, expected, rtol, atol=0.0, label=""):
    for one, other in zip(found, expected, strict=True):
        one = np.asarray(one, np.float64)
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol, err_msg=str(label))


def assert_same(found, expected, label=""):
    """Bit by bit."""
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=str(label))
