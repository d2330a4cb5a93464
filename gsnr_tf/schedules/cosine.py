"""The rate of comparisons and examples: the same shape for every optimizer and batch."""

import math

import tensorflow as tf

from gsnr_tf.schedules.base import UpdateSchedule, registered


@registered
class WarmupCosine(UpdateSchedule):
    """Rises to the peak over a tenth of the updates, then falls along a cosine to 0.

        λ = peak·min((t + 1)/w, (1 + cos(π·max(t − w, 0)/(T − w)))/2),   w = max(1, T // 10)

    Args:
        peak: The largest rate: float, or a scalar variable, which may change.
        updates: Int, T, how many updates the run has.
    """

    def __init__(self, peak, updates):
        if updates < 1:
            raise ValueError(f"updates must be at least 1. Received: updates={updates}")
        self.peak, self.updates = peak, updates

    def rate(self, t):
        warmup = max(1, self.updates // 10)
        rise = (t + 1) / warmup
        way = tf.maximum(t - warmup, 0.0) / max(1, self.updates - warmup)
        fall = (1 + tf.cos(math.pi * way)) / 2
        return tf.cast(self.peak, tf.float64) * tf.minimum(rise, fall)

    def get_config(self):
        return {"peak": float(self.peak), "updates": self.updates}
