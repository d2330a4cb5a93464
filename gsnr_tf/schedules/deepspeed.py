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


def _check_total(total):
    if total < 1:
        raise ValueError(f"total_num_steps must be at least 1. Received: total_num_steps={total}")


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

    Where T is not greater than w, the rate falls at once.

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
        _check_total(total_num_steps)
        self.total_num_steps = total_num_steps

    def _after(self, n):
        falling = max(1.0, self.total_num_steps - max(2, self.warmup_num_steps))
        return tf.maximum((self.total_num_steps - n) / falling, 0.0)


@registered
class WarmupCosineLR(_Warmup):
    """Rises to the optimizer's rate, then falls along half a cosine.

        λ = λ₀·(a + (1 − a)·γ),   γ as in `WarmupLR`
        λ = λ₀·(c + (1 − c)·(1 + cos(π·(n − w + 1)/(T − w)))/2)   for n ≥ w

    The first update has the rate 0. After T updates the rate stays at λ₀·c. Where T is not
    greater than w, it falls to that at once.

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
        _check_total(total_num_steps)
        self.learning_rate = learning_rate
        self.total_num_steps = total_num_steps
        self.warmup_min_ratio = warmup_min_ratio
        self.warmup_num_steps = warmup_num_steps
        self.cos_min_ratio = cos_min_ratio
        self.warmup_type = warmup_type

    def rate(self, t):
        n, steps = t - 1, max(2, self.warmup_num_steps)
        up = self.warmup_min_ratio + (1 - self.warmup_min_ratio) * self._risen(n)
        falling = max(1.0, self.total_num_steps - steps)
        way = tf.minimum((n - steps + 1) / falling, 1.0)
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

    With c stairs a way up or down is c steps of one height in place of a line: t/a is
    rounded down to a whole number of 1/c. Momentum is not cycled.

    Args:
        cycle_min_lr: Float.
        cycle_max_lr: Float.
        decay_lr_rate: Float, d. Defaults to 0.
        cycle_first_step_size: Int, a. Defaults to 2000.
        cycle_second_step_size: Int, b. Defaults to `None`: as a.
        decay_step_size: Int, s. Defaults to 0: no decay.
        cycle_first_stair_count: Int, stairs of the way up. Defaults to 0: a line.
        cycle_second_stair_count: Int, of the way down. Defaults to `None`: as many.

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
        cycle_first_stair_count=0,
        cycle_second_stair_count=None,
    ):
        for name, size, least in (
            ("cycle_first_step_size", cycle_first_step_size, 1),
            ("cycle_second_step_size", cycle_second_step_size, 0),
            ("cycle_first_stair_count", cycle_first_stair_count, 0),
            ("cycle_second_stair_count", cycle_second_stair_count, 0),
        ):
            if size is not None and size < least:
                raise ValueError(f"{name} must be at least {least}. Received: {name}={size}")
        self.cycle_min_lr = cycle_min_lr
        self.cycle_max_lr = cycle_max_lr
        self.decay_lr_rate = decay_lr_rate
        self.cycle_first_step_size = cycle_first_step_size
        self.cycle_second_step_size = cycle_second_step_size
        self.decay_step_size = decay_step_size
        self.cycle_first_stair_count = cycle_first_stair_count
        self.cycle_second_stair_count = cycle_second_stair_count

    def rate(self, t):
        first, second = self.cycle_first_step_size, self.cycle_second_step_size
        second = first if second is None else second
        stairs, others = self.cycle_first_stair_count, self.cycle_second_stair_count
        others = stairs if others is None else others
        up = _by_stairs(t / first, stairs)
        down = _by_stairs((first + second - t) / max(second, 1), others)
        # A way down of no updates leaves none for the top, either.
        share = tf.where(t <= first if second else t < first, up, down)
        cycle = self.cycle_min_lr + (self.cycle_max_lr - self.cycle_min_lr) * share
        decay = 0.0
        if self.decay_step_size:
            decay = self.decay_lr_rate * (t - first - second) / self.decay_step_size
        return tf.where(t <= first + second, cycle, self.cycle_min_lr / (1.0 + decay))


def _by_stairs(share, count):
    """A share of the way, rounded down to a stair where there are stairs."""
    if not count:
        return share
    # A share just below a stair, by rounding, is on it.
    return tf.floor(share * count + 1e-9) / count


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
