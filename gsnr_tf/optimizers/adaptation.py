"""Layer adaptation: a trust ratio for each variable."""

import tensorflow as tf

from gsnr_tf.optimizers.exclusions import as_list, checked_patterns, selected
from gsnr_tf.optimizers.gsnr import GSNROptimizer

ADAPTATION_ARGUMENT = """exclude_from_layer_adaptation: List of regular expressions, searched in
            `variable.path`: which variables have the trust ratio 1. An empty list
            excludes none. Defaults to `None`: variables with at most one dimension."""


class LayerAdaptedOptimizer(GSNROptimizer):
    """Base of the rules with a trust ratio φ = trust_ratio(‖θ‖, ‖u‖)."""

    exclude_vectors = True

    def __init__(self, learning_rate, exclude_from_layer_adaptation=None, **kwargs):
        super().__init__(learning_rate, **kwargs)
        self._not_adapted = checked_patterns(
            "exclude_from_layer_adaptation", exclude_from_layer_adaptation
        )

    def choose_variables(self, variables):
        super().choose_variables(variables)
        self._adapts = selected(variables, self._not_adapted, self.exclude_vectors)

    def trust_ratio(self, theta_norm, u_norm, step):
        """Returns φ, a scalar tensor, for norms that are not 0."""
        raise NotImplementedError(f"{type(self).__name__} has no trust ratio")

    def adapts(self, index):
        return self._adapts[index]

    def trust(self, theta_norm, u_norm, step):
        """φ, 1 where either norm is 0. Scalars, or vectors with a place for each variable."""
        known = tf.logical_and(theta_norm > 0, u_norm > 0)
        phi = self.trust_ratio(theta_norm, u_norm, step)
        return tf.where(known, phi, tf.ones_like(phi))

    def get_config(self):
        return {
            **super().get_config(),
            "exclude_from_layer_adaptation": as_list(self._not_adapted),
        }
