"""Accumulation as an optimizer shows it: windows of micro-batches between updates."""

import numpy as np
import tensorflow as tf

from gsnr_tf.optimizers.accumulator import GradientAccumulator
from gsnr_tf.optimizers.learning_rate import SchedulesCountUpdates, number


class AccumulatesWindows(SchedulesCountUpdates):
    """The part of `DistributedStep` that counts micro-batches, and keeps what they sum to."""

    # The vectors of the window, for tf.train.Checkpoint to find.
    _accumulated = ()
    # The number of micro-batches in a window, where it may change; see `vary_window`.
    _varies = False
    _window_size = None
    # Whether the micro-batches of a worker are samples of their own.
    _keeps_m2 = False

    def _make_window(self):
        self._accumulator = GradientAccumulator(self._layout)
        if self._keeps_m2:
            self._accumulator.keep_m2()
        self._track_variable(self._accumulator.weight)
        # An attribute of its own, for tf.train.Checkpoint to find.
        self._accumulated = self._accumulator.views
        if self._varies:
            self._follow_progress()

    def _move_window(self):
        """Goes on with what is accumulated in another layout."""
        before = self._accumulator
        self._accumulator = GradientAccumulator(self._layout, before.weight)
        if before.keeps_m2:
            self._accumulator.keep_m2()
        with tf.init_scope():
            if not self.at_window_start:
                for old, new in zip(before.views, self._accumulator.views):
                    new.assign(old.numpy())
        self._accumulated = self._accumulator.views

    @property
    def accumulation_steps(self):
        """Micro-batches of each worker in an update: an int, or a scalar int64 tensor
        where they may change."""
        if self._window_size is None:
            return self.gradient_accumulation_steps or 1
        return tf.convert_to_tensor(self._window_size)

    def vary_window(self):
        """Lets `set_accumulation_steps` change the window of a training under way.

        Its size becomes part of the optimizer's state. To be called before `build`,
        after loading as before saving.

        Raises:
            ValueError: The optimizer is already built.
        """
        if self.built and self._window_size is None:
            raise ValueError(
                "The accumulation window of this optimizer is fixed: it is already "
                f"built. Received: {self.name}. Call `vary_window()`, or give `fit` "
                "BatchSizeRamp, before the first step."
            )
        self._varies = True

    def set_accumulation_steps(self, steps):
        """Makes further updates of so many micro-batches of each worker.

        Changes the train step without tracing it anew. All workers must call it alike,
        outside of a step and at the end of a window. `iterations` still counts updates;
        a schedule counts those of the first batch from now on, see `schedule_step`.

        Args:
            steps: Int, at least 1.

        Raises:
            ValueError: The window may not change, or has begun.
        """
        if self._window_size is None:
            raise ValueError("Call `vary_window()` before the optimizer is built.")
        if steps < 1:
            raise ValueError(f"steps must be at least 1. Received: steps={steps}")
        calls, now = number(self._iterations), number(self.accumulation_steps)
        if calls % now:
            raise ValueError(
                f"The window has begun: {calls % now} of {now} micro-batches are "
                "accumulated. Change it after an update."
            )
        if self._progress is not None:
            self.count_examples(*self._sizes())
        self._iterations.assign(calls // now * steps)
        self._window_size.assign(steps)

    @property
    def iterations(self):
        """Number of updates, as in Keras."""
        if self._window_size is None:
            return super().iterations
        calls = tf.convert_to_tensor(self._iterations)
        return calls // tf.cast(self.accumulation_steps, calls.dtype)

    def full_state(self):
        window = self._accumulator.weight if self._accumulated else None
        return [variable for variable in self.all_state() if variable is not window]

    def all_state(self):
        """State as `self.variables` has it: the weight of the window is among it."""
        return self.variables

    def window_state(self):
        return [self._accumulator.weight, *self._accumulated] if self._accumulated else []

    def reset_window(self):
        """Forgets what was accumulated since the last update: a window begins anew."""
        if not self._accumulated:
            return
        self._accumulator.restart()
        calls, steps = number(self._iterations), number(self.accumulation_steps)
        self._iterations.assign(calls // steps * steps)

    @property
    def count_of_calls(self):
        """Variable: calls that count so far, a whole number of windows between updates."""
        return self._iterations

    @property
    def calls_in_window(self):
        """Int, how many micro-batches are accumulated since the last update."""
        return number(self._iterations) % number(self.accumulation_steps)

    def set_updates(self, updates):
        """Makes it the count of updates so far, with nothing accumulated.

        Args:
            updates: Int.
        """
        for variable in self.window_state():
            variable.assign(np.zeros(variable.shape))
        self._iterations.assign(updates * number(self.accumulation_steps))

    def division_state(self):
        """State that depends on how an update is divided into micro-batches: the count of
        calls, the size of the window, progress of a schedule, and what is accumulated."""
        own = [self._iterations, self._window_size, *self.schedule_variables()]
        return [*(v for v in own if v is not None), *self.window_state()]

    @property
    def is_alone(self):
        """Whether a single worker brings gradients, as far as is known."""
        return self._comm is not None and self._comm.workers == 1

    @property
    def at_window_start(self):
        """Whether nothing is accumulated: an update was the last thing done."""
        return number(self._iterations) % number(self.accumulation_steps) == 0
