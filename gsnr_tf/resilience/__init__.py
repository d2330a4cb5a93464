"""What keeps a job of many workers alive and in step."""

from gsnr_tf.resilience.checkpoint_files import CheckpointError
from gsnr_tf.resilience.elastic import ElasticState, elastic_run

__all__ = ["CheckpointError", "ElasticState", "elastic_run"]
