"""Training under a `tf.distribute.Strategy` where Keras' `fit` does not work."""

from gsnr_tf.strategy.fit import fit_in_strategy, is_chief

__all__ = ["fit_in_strategy", "is_chief"]
