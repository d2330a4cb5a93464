"""What the recommenders among the tasks share: chances of a click, judged by AUC."""

import movielens

from gsnr_tf.compare import Task


class ClickTask(Task):
    """A model that says how likely each row is 1 and not 0."""

    metric, higher_is_better = "AUC", True
    loss = "binary_crossentropy"

    def score(self, model, features, targets):
        return movielens.auc(targets, self._chances(model, features))

    def row_scores(self, model, features, targets):
        return movielens.auc_by_row(targets, self._chances(model, features))

    def _chances(self, model, features):
        return model.predict(features, batch_size=10_000, verbose=0)[:, 0]
