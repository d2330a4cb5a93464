"""What the recommenders among the tasks share: chances of a click, judged by AUC."""

import click_scores
import movielens
import numpy as np

from gsnr_tf.compare import Task

ROWS = 10_000  # that are scored at a time


class ClickTask(Task):
    """A model that says how likely each row is 1 and not 0.

    Attributes:
        group: Name of the feature that says whose row each is, or `None`.
    """

    metric, higher_is_better = "AUC", True
    loss = "binary_crossentropy"
    group = None

    def score(self, model, features, targets):
        return movielens.auc(targets, self._chances(model, features))

    def row_scores(self, model, features, targets):
        return movielens.auc_by_row(targets, self._chances(model, features))

    def measures(self, model, features, targets):
        chances, groups = self._chances(model, features), self.groups(features)
        found = {
            "log loss": click_scores.log_loss(targets, chances),
            "calibration error": click_scores.calibration_error(targets, chances),
        }
        if groups is not None:
            found["AUC by group"] = click_scores.auc_by_group(targets, chances, groups)
        return found

    def groups(self, features):
        return features[self.group] if self.group else None

    def _chances(self, model, features):
        # `model.predict` takes several times as long, to make a dataset of them.
        rows = len(next(iter(features.values())))
        parts = [
            model.predict_on_batch({name: c[first : first + ROWS] for name, c in features.items()})
            for first in range(0, rows, ROWS)
        ]
        return np.concatenate(parts)[:, 0]
