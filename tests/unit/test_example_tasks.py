"""The models of the example tasks."""

import sys

import keras
import numpy as np
import pytest

from gsnr_tf.compare import load_task
from gsnr_tf.compare.task import checked
from tests.processes import ROOT

EXAMPLES = ROOT / "keras_examples"


def example(name, size="default"):
    return load_task(EXAMPLES / name, size)


def logits_by(name, position):
    """By how much each position's logits move when the byte at `position` changes."""
    keras.utils.set_random_seed(0)
    task = example(f"language_task.py:{name}")
    model = task.build_model()
    shown = np.random.default_rng(0).integers(0, 256, (1, task.length))
    other = shown.copy()
    other[0, position] ^= 1
    moved = keras.ops.abs(model(shown) - model(other))
    return keras.ops.convert_to_numpy(keras.ops.max(moved, axis=-1))[0]


def test_the_causal_transformer_looks_back_alone():
    moved = logits_by("CausalBytes", 30)
    assert (moved[:30] == 0).all()
    assert (moved[30:] > 0).all()


def test_the_masked_transformer_looks_both_ways():
    assert (logits_by("MaskedBytes", 30) > 0).all()


def test_the_language_tasks_ask_for_the_right_bytes():
    task = example("language_task.py:CausalBytes")
    train, validation, test = checked(task.load())
    np.testing.assert_array_equal(train.features[:, 1:], train.targets[:, :-1])
    assert train.features.shape[1] == task.length
    assert len(validation.features) == len(test.features) == 500
    masked = checked(example("language_task.py:MaskedBytes").load())
    asked = masked.test.targets >= 0
    assert 0.1 < asked.mean() < 0.2
    assert (masked.test.features[~asked] < 256).all()


def test_positions_that_ask_nothing_weigh_nothing():
    loss = example("language_task.py:MaskedBytes").loss
    logits = np.random.default_rng(0).normal(size=(2, 8, 256)).astype("float32")
    targets = np.full((2, 8), -1)
    targets[0, 3], targets[1, 5] = 7, 9
    shares = [logits[0, 3], logits[1, 5]]
    expected = [np.log(np.exp(s).sum()) - s[t] for s, t in zip(shares, (7, 9))]
    np.testing.assert_allclose(float(loss(targets, logits)), np.mean(expected), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "convolutions", "normalizations"),
    [
        ("SmallCNN", "default", 2, 0),
        ("SmallResNet", "default", 1 + 3 * 2 + 2, 9),
        ("SmallResNet", "large", 1 + 9 * 2 + 2, 21),
    ],
)
def test_the_vision_models(name, size, convolutions, normalizations):
    model = example(f"vision_task.py:{name}", size).build_model()
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds.count("Conv2D") == convolutions
    assert kinds.count("BatchNormalization") == normalizations
    chances = model(np.zeros((2, 28, 28, 1), "uint8"))
    np.testing.assert_allclose(keras.ops.sum(chances, axis=1), 1, rtol=1e-5)


def test_the_recommender_is_scored_by_its_exact_auc():
    task = example("movielens_task.py")
    data = checked(task.load())
    assert [split.rows for split in data] == [80_000, 10_000, 10_004]
    model = task.build_model()
    model.compile(loss=task.loss)
    score = task.score(model, *data.test)
    scores = model.predict(data.test.features, batch_size=5000, verbose=0)[:, 0]
    clicks, others = (scores[data.test.targets == click] for click in (1, 0))
    others = np.sort(others)
    below = np.searchsorted(others, clicks, "left")
    ties = np.searchsorted(others, clicks, "right") - below
    np.testing.assert_allclose(score, (below + ties / 2).mean() / len(others), rtol=1e-9)
    rows = task.row_scores(model, *data.test)
    np.testing.assert_allclose(rows.mean(), score, rtol=1e-6)


def test_the_auc_by_row_has_the_error_of_the_auc():
    """Against rows drawn anew, of which the AUC is computed again."""
    sys.path.insert(0, str(EXAMPLES))
    import movielens

    rng = np.random.default_rng(0)
    clicks = (rng.uniform(size=3000) < 0.3).astype("float32")
    scores = np.round(rng.normal(size=3000) + 0.8 * clicks, 1)
    rows = movielens.auc_by_row(clicks, scores)
    assert rows.mean() == pytest.approx(movielens.auc(clicks, scores))
    drawn = [rng.integers(0, 3000, 3000) for _ in range(300)]
    again = [movielens.auc(clicks[index], scores[index]) for index in drawn]
    assert rows.std() / np.sqrt(3000) == pytest.approx(np.std(again), rel=0.15)


@pytest.mark.parametrize(
    "name, size, rows, positives",
    [
        ("Flights", "default", 327_346, (0.23, 0.25)),
        ("Flights", "rare", 257_439, (0.0299, 0.0301)),
        ("InstEval", "default", 73_421, (0.44, 0.45)),
    ],
)
def test_tables_are_split_whole_and_train(name, size, rows, positives):
    task = example(f"tables_task.py:{name}", size)
    data = checked(task.load())
    assert sum(split.rows for split in data) == rows
    share = np.concatenate([split.targets for split in data]).mean()
    assert positives[0] < share < positives[1]
    model = task.build_model(l2=0.1)
    assert all(np.max(c) < model.get_layer(f"{n}_embedding").input_dim
               for n, c in data.test.features.items())  # fmt: skip
    model.compile("adam", task.loss)
    head = data.train.head(256)
    losses = [model.train_on_batch(head.features, head.targets) for _ in range(20)]
    assert losses[-1] < losses[0]
    assert 0 <= task.score(model, head.features, head.targets) <= 1
