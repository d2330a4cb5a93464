"""What is recorded of a training, what it says, and what to do next."""

from gsnr_tf.monitor.advise import advise
from gsnr_tf.monitor.run import Run

__all__ = ["Run", "advise"]
