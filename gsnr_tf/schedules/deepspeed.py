"""DeepSpeed's learning-rate schedules for Keras.

Each gives update t = 0, 1, 2, … the rate that DeepSpeed's class of the same name gives
it. DeepSpeed moves a schedule on after an update, so that the warm-ups know of t − 1
updates when they set the rate of update t; n below is that t − 1.
"""

import math

import tensorflow as tf

from gsnr_tf.schedules.base import UpdateSchedule, registered


def _check_warmup(steps, kind):
    if steps < 0:
        raise ValueError(
            f"warmup_num_steps must not be negative. Received: warmup_num_steps={steps}"
        )
    if kind not in ("log", "linear"):
        raise ValueError(f"warmup_type must be 'log' or 'linear'. Received: warmup_type={kind!r}")


def _check_total(total, warmup):
    if total <= warmup:
        raise ValueError(
            "total_num_steps must be greater than warmup_num_steps. Received: "
            f"total_num_steps={total}, warmup_num_steps={warmup}"
        )


class _Warmup(UpdateSchedule):
    def _risen(self, n):
        """How much of the way up is done after `n` updates, for n in [0, steps)."""
        steps = max(2, self.warmup_num_steps)
        n = tf.maximum(n, 0.0)
        if self.warmup_type == "linear":
            return n / steps
        return tf.math.log(n + 1) / math.log(steps)


@registered
class WarmupLR(_Warmup):
    """Rises to a rate and stays there.

        λ = min + (max − min)·γ,   γ = ln(n+1)/ln(w)  or  n/w,   then λ = max

    Args:
        warmup_min_lr: Float, the rate of the first update. Defaults to 0.
        warmup_max_lr: Float. Defaults to 0.001.
        warmup_num_steps: Int, w, at least 2. Defaults to 1000.
        warmup_type: "log" or "linear". Defaults to "log".
    """

    def __init__(
        self,
        warmup_min_lr=0.0,
        warmup_max_lr=0.001,
        warmup_num_steps=1000,
        warmup_type="log",
    ):
        _check_warmup(warmup_num_steps, warmup_type)
        self.warmup_min_lr = warmup_min_lr
        self.warmup_max_lr = warmup_max_lr
        self.warmup_num_steps = warmup_num_steps
        self.warmup_type = warmup_type

    def rate(self, t):
        n = t - 1
        warm = n < max(2, self.warmup_num_steps)
        share = tf.where(warm, self._risen(n), self._after(n))
        return self.warmup_min_lr + (self.warmup_max_lr - self.warmup_min_lr) * share

    def _after(self, n):
        return tf.ones_like(n)


@registered
class WarmupDecayLR(WarmupLR):
    """Rises as `WarmupLR`, then falls in a straight line to the lower rate.

        λ = min + (max − min)·(T − n)/(T − w)   for n ≥ w

    Args:
        total_num_steps: Int, T.
        warmup_min_lr, warmup_max_lr, warmup_num_steps, warmup_type: As for
            `WarmupLR`.
    """

    def __init__(
        self,
        total_num_steps,
        warmup_min_lr=0.0,
        warmup_max_lr=0.001,
        warmup_num_steps=1000,
        warmup_type="log",
    ):
        super().__init__(warmup_min_lr, warmup_max_lr, warmup_num_steps, warmup_type)
        _check_total(total_num_steps, warmup_num_steps)
        self.total_num_steps = total_num_steps

    def _after(self, n):
        falling = max(1.0, self.total_num_steps - max(2, self.warmup_num_steps))
        return tf.maximum((self.total_num_steps - n) / falling, 0.0)


@registered
class WarmupCosineLR(_Warmup):
    """Rises to the optimizer's rate, then falls along half a cosine.

        λ = λ₀·(a + (1 − a)·γ),   γ as in `WarmupLR`
        λ = λ₀·(c + (1 − c)·(1 + cos(π·(n − w + 1)/(T − w)))/2)   for n ≥ w

    The first update has the rate 0. After T updates the rate stays at λ₀·c; DeepSpeed's
    would rise again.

    Args:
        learning_rate: Float, λ₀. In a configuration it is the optimizer's.
        total_num_steps: Int, T.
        warmup_min_ratio: Float, a. Defaults to 0.
        warmup_num_steps: Int, w, at least 2. Defaults to 1000.
        cos_min_ratio: Float, c. Defaults to 0.0001.
        warmup_type: "log" or "linear". Defaults to "log".
    """

    def __init__(
        self,
        learning_rate,
        total_num_steps,
        warmup_min_ratio=0.0,
        warmup_num_steps=1000,
        cos_min_ratio=0.0001,
        warmup_type="log",
    ):
        _check_warmup(warmup_num_steps, warmup_type)
        _check_total(total_num_steps, max(2, warmup_num_steps))
        self.learning_rate = learning_rate
        self.total_num_steps = total_num_steps
        self.warmup_min_ratio = warmup_min_ratio
        self.warmup_num_steps = warmup_num_steps
        self.cos_min_ratio = cos_min_ratio
        self.warmup_type = warmup_type

    def rate(self, t):
        n, steps = t - 1, max(2, self.warmup_num_steps)
        up = self.warmup_min_ratio + (1 - self.warmup_min_ratio) * self._risen(n)
        way = tf.minimum((n - steps + 1) / (self.total_num_steps - steps), 1.0)
        fallen = (1 + tf.cos(math.pi * way)) / 2
        down = self.cos_min_ratio + (1 - self.cos_min_ratio) * fallen
        ratio = tf.where(n < 0, tf.zeros_like(n), tf.where(n < steps, up, down))
        return self.learning_rate * ratio


@registered
class OneCycle(UpdateSchedule):
    """Rises and falls once in straight lines, then decays.

        λ = min + (max − min)·t/a              for t ≤ a
        λ = min + (max − min)·(a + b − t)/b    for a < t ≤ a + b
        λ = min/(1 + d·(t − a − b)/s)          for t > a + b

    Momentum is not cycled.

    Args:
        cycle_min_lr: Float.
        cycle_max_lr: Float.
        decay_lr_rate: Float, d. Defaults to 0.
        cycle_first_step_size: Int, a. Defaults to 2000.
        cycle_second_step_size: Int, b. Defaults to `None`: as a.
        decay_step_size: Int, s. Defaults to 0: no decay.

    Reference: Smith, arXiv 1803.09820.
    """

    def __init__(
        self,
        cycle_min_lr,
        cycle_max_lr,
        decay_lr_rate=0.0,
        cycle_first_step_size=2000,
        cycle_second_step_size=None,
        decay_step_size=0,
    ):
        for name, size in (
            ("cycle_first_step_size", cycle_first_step_size),
            ("cycle_second_step_size", cycle_second_step_size),
        ):
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1. Received: {name}={size}")
        self.cycle_min_lr = cycle_min_lr
        self.cycle_max_lr = cycle_max_lr
        self.decay_lr_rate = decay_lr_rate
        self.cycle_first_step_size = cycle_first_step_size
        self.cycle_second_step_size = cycle_second_step_size
        self.decay_step_size = decay_step_size

    def rate(self, t):
        first = self.cycle_first_step_size
        second = self.cycle_second_step_size or first
        share = tf.where(t <= first, t / first, (first + second - t) / second)
        cycle = self.cycle_min_lr + (self.cycle_max_lr - self.cycle_min_lr) * share
        decay = 0.0
        if self.decay_step_size:
            decay = self.decay_lr_rate * (t - first - second) / self.decay_step_size
        return tf.where(t <= first + second, cycle, self.cycle_min_lr / (1.0 + decay))


@registered
class LRRangeTest(UpdateSchedule):
    """Rises without end, to find the rate at which training fails.

        λ = min·(1 + r·t/s),   with `staircase` t/s is rounded down

    Args:
        lr_range_test_min_lr: Float. Defaults to 0.001.
        lr_range_test_step_size: Int, s. Defaults to 2000.
        lr_range_test_step_rate: Float, r. Defaults to 1.
        lr_range_test_staircase: Boolean. Defaults to `False`.

    Reference: Smith, arXiv 1803.09820.
    """

    def __init__(
        self,
        lr_range_test_min_lr=0.001,
        lr_range_test_step_size=2000,
        lr_range_test_step_rate=1.0,
        lr_range_test_staircase=False,
    ):
        if lr_range_test_step_size < 1:
            raise ValueError(
                "lr_range_test_step_size must be at least 1. Received: "
                f"lr_range_test_step_size={lr_range_test_step_size}"
            )
        self.lr_range_test_min_lr = lr_range_test_min_lr
        self.lr_range_test_step_size = lr_range_test_step_size
        self.lr_range_test_step_rate = lr_range_test_step_rate
        self.lr_range_test_staircase = lr_range_test_staircase

    def rate(self, t):
        interval = t / self.lr_range_test_step_size
        if self.lr_range_test_staircase:
            interval = tf.floor(interval)
        return self.lr_range_test_min_lr * (1 + self.lr_range_test_step_rate * interval)


# By the names that a configuration has for them.
DEEPSPEED = {
    rule.__name__: rule for rule in (WarmupLR, WarmupDecayLR, WarmupCosineLR, OneCycle, LRRangeTest)
}
