"""The learning rate over a run, the same shape for every optimizer and batch."""

import math

import keras


@keras.saving.register_keras_serializable("gsnr_tf")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Rises to the peak over a tenth of the updates, then falls along a cosine to 0.

    Keras asks a schedule at every micro-batch; this one counts whole updates, so that
    it is the same for any number of accumulation steps.

    Args:
        peak: The largest rate: float, or a scalar variable, which may change.
        updates: Int, how many updates the run has.
        accumulation_steps: Int, micro-batches an update.
    """

    def __init__(self, peak, updates, accumulation_steps=1):
        self.peak, self.updates = peak, updates
        self.accumulation_steps = accumulation_steps

    def __call__(self, micro_step):
        update = keras.ops.cast(micro_step // self.accumulation_steps, "float32")
        warmup = max(1, self.updates // 10)
        rise = (update + 1) / warmup
        way = keras.ops.maximum(update - warmup, 0.0) / max(1, self.updates - warmup)
        fall = (1 + keras.ops.cos(math.pi * way)) / 2
        return self.peak * keras.ops.minimum(rise, fall)

    def get_config(self):
        return {
            "peak": float(self.peak),
            "updates": self.updates,
            "accumulation_steps": self.accumulation_steps,
        }
