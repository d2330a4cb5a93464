"""Learning-rate warm-up and scaling with the batch."""

import keras

from gsnr_tf import comm
from gsnr_tf.optimizers.inner import inner_optimizer, rate_variable

_SCALINGS = {"linear": 1.0, "sqrt": 0.5, "none": 0.0}


class LearningRateWarmupCallback(keras.callbacks.Callback):
    """Raises the learning rate step by step to what suits the large batch.

        target = learning_rate · batch_ratioᵖ     p = 1 linear, ½ sqrt, 0 none
        λ_t = target · t / warmup_steps           for the updates t = 1 … warmup_steps

    A callback and no schedule: the batch ratio is known when training begins, and not
    when the optimizer is made. Afterwards it leaves the learning rate alone. It counts the
    optimizer's updates, so a resumed training goes on where it was.

    Args:
        learning_rate: Float, chosen for the small batch.
        warmup_steps: Int, at least 1, updates until the target is reached.
        batch_ratio: Float, how many times larger the batch of an update is than the
            one that `learning_rate` was chosen for. Defaults to the number of
            samples of an update: ranks (or replicas) × accumulated micro-batches.
        scaling: "linear" (Goyal et al., arXiv 1706.02677), "sqrt" (usual for LAMB,
            You et al., arXiv 1904.00962) or "none". Defaults to "linear".

    Raises:
        ValueError: An argument is out of range, or the optimizer follows a
            schedule, which it would overrule.
    """

    def __init__(self, learning_rate, warmup_steps, batch_ratio=None, scaling="linear"):
        super().__init__()
        if scaling not in _SCALINGS:
            raise ValueError(f"scaling must be one of {sorted(_SCALINGS)}. Received: {scaling!r}")
        if warmup_steps < 1:
            raise ValueError(f"warmup_steps must be at least 1. Received: {warmup_steps}")
        if batch_ratio is not None and batch_ratio <= 0:
            raise ValueError(f"batch_ratio must be positive. Received: {batch_ratio}")
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.batch_ratio = batch_ratio
        self.scaling = scaling

    def on_train_begin(self, logs=None):
        optimizer = inner_optimizer(self.model)
        if rate_variable(self.model) is None:
            raise ValueError(
                "LearningRateWarmupCallback sets the learning rate, but the optimizer "
                f"follows {optimizer.get_config()['learning_rate']!r}. Give the optimizer "
                "a float, or put the warm-up into the schedule."
            )
        ratio = self.batch_ratio
        if ratio is None:
            communicator = comm.choose("auto", self.model.distribute_strategy)
            ratio = communicator.workers * (optimizer.gradient_accumulation_steps or 1)
        self._target = self.learning_rate * ratio ** _SCALINGS[self.scaling]

    def on_train_batch_begin(self, batch, logs=None):
        update = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations)) + 1
        if update <= self.warmup_steps:
            self.model.optimizer.learning_rate = self._target * update / self.warmup_steps
