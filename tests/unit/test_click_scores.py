"""Figures of a recommender beside its AUC."""

import sys

import numpy as np
import pytest

from tests.processes import ROOT

sys.path.insert(0, str(ROOT / "keras_examples"))
import click_scores


def test_log_loss_is_of_what_happened():
    clicks, chances = np.array([1.0, 0.0]), np.array([0.8, 0.4], "float32")
    expected = -(np.log(0.8) + np.log(0.6)) / 2
    assert click_scores.log_loss(clicks, chances) == pytest.approx(expected, rel=1e-6)
    sure = click_scores.log_loss(clicks, np.array([0.0, 1.0], "float32"))
    assert np.isfinite(sure) and sure > 10


def test_calibration_is_the_same_for_any_order_and_worse_for_chances_that_are_off():
    rng = np.random.default_rng(0)
    chances = rng.uniform(size=40_000)
    clicks = (rng.uniform(size=40_000) < chances).astype("float64")
    good = click_scores.calibration_error(clicks, chances)
    assert good < 0.02
    order = rng.permutation(40_000)
    again = click_scores.calibration_error(clicks[order], chances[order])
    assert again == pytest.approx(good, rel=1e-6)
    assert click_scores.calibration_error(clicks, chances / 2) == pytest.approx(0.25, abs=0.01)


def test_auc_by_group_does_not_count_who_clicks_more():
    groups = np.array([7, 3, 7, 3, 5, 7])
    clicks = np.array([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    # Right for group 7 (three rows), wrong for group 3 (two), no AUC for group 5.
    chances = np.array([0.9, 0.8, 0.1, 0.2, 0.5, 0.3])
    assert click_scores.auc_by_group(clicks, chances, groups) == pytest.approx(3 / 5)
    assert np.isnan(click_scores.auc_by_group(np.ones(6), chances, groups))
