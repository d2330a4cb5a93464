"""Who owns which part of the parameters, and the step that goes with it."""

from gsnr_tf.sharding.layout import BUCKET_BYTES
from gsnr_tf.sharding.slices import Slices
from gsnr_tf.sharding.state import Slots
from gsnr_tf.sharding.whole import Whole

__all__ = ["BUCKET_BYTES", "Slices", "Slots", "Whole"]
