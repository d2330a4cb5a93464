"""What keeps a job of many workers alive and in step."""

from gsnr_tf.resilience.elastic import ElasticState, elastic_run
from gsnr_tf.resilience.loss_scale import LossScaleOptimizer

__all__ = ["ElasticState", "LossScaleOptimizer", "elastic_run"]
