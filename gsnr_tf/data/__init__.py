"""Each rank's part of the data."""

from gsnr_tf.data.shard import shard

__all__ = ["shard"]
