"""The learning rate of an update: schedules are read by updates.

Keras reads a schedule by calls of the optimizer, which are micro-batches where gradients
accumulate. Here it is read by updates; where the batch changes under way, by updates of
the first batch, so that a schedule ends after the same number of examples.
"""

import warnings

import keras
import tensorflow as tf

from gsnr_tf import comm
from gsnr_tf.schedules import UpdateSchedule

_told = False


def number(value):
    """A scalar variable, also one of replicas, or a tensor as an int."""
    return int(tf.convert_to_tensor(value))


class SchedulesCountUpdates:
    """The part of `DistributedStep` that says what the learning rate is.

    Keras asks `_get_current_learning_rate` for all of them: `optimizer.learning_rate`, the
    rate in a step, and what ranks compare.
    """

    # Where the batch may change and the rate is no number that can be set, two variables:
    # `[examples, updates, examples of a micro-batch, examples of the first batch]`, the
    # first two up to the last change; and what the schedule's rate is multiplied by.
    _progress = None
    _rate_factor = None

    def _follow_progress(self):
        """Makes them, in `build`."""
        if not self._has_schedule():
            return
        start = [0, 0, 1, self.gradient_accumulation_steps or 1]
        self._progress = self.add_variable(
            (4,),
            dtype="int64",
            initializer=keras.initializers.Constant(start),
            aggregation="only_first_replica",
            name="schedule_progress",
        )
        self._rate_factor = self.add_variable(
            (),
            dtype="float32",
            initializer="ones",
            aggregation="only_first_replica",
            name="rate_factor",
        )

    def _has_schedule(self):
        """Whether the rate comes from a schedule, or a function: there is none to set."""
        return not isinstance(self._learning_rate, keras.Variable)

    def schedule_variables(self):
        """The variables of a schedule whose batch may change; usually none."""
        return [v for v in (self._progress, self._rate_factor) if v is not None]

    @property
    def schedule_step(self):
        """Scalar int64, what a schedule sees: updates so far, without those that were
        skipped; where the batch has changed, examples so far ÷ the first batch."""
        if self._progress is None:
            return self.iterations
        return self._examples_so_far() // self._progress[3]

    def _examples_so_far(self):
        examples, since, micro_batch, _ = tf.unstack(tf.convert_to_tensor(self._progress))
        steps = tf.cast(self.accumulation_steps, tf.int64)
        updates = tf.cast(self.iterations, tf.int64) - since
        return examples + updates * steps * micro_batch

    def _get_current_learning_rate(self):
        if isinstance(self._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            rate = self._learning_rate(self.schedule_step)
        else:
            rate = super()._get_current_learning_rate()
        return rate if self._rate_factor is None else rate * self._rate_factor

    def count_examples(self, micro_batch, first_batch=None, so_far=None):
        """Says how large batches are from the next update on, for a schedule.

        Only needed where more than `set_accumulation_steps` changes the batch. All workers
        must call it alike, between updates. Any unit will do that is the same each time.

        Args:
            micro_batch: Int, examples of a micro-batch over all workers.
            first_batch: Int, examples of the update that a schedule counts as one. Left
                out, what it was; before the first update, those of the next update.
            so_far: Int, examples of all updates so far. Left out, what was counted.
        """
        if self._progress is None:
            return
        updates = number(self.iterations)
        if so_far is None:
            so_far = number(self._examples_so_far())
        if first_batch is None:
            _, first_batch = self._sizes()
            if not updates:
                first_batch = micro_batch * number(self.accumulation_steps)
        self._progress.assign([so_far, updates, micro_batch, first_batch])

    def _sizes(self):
        """Examples of a micro-batch and of the first batch, ints."""
        return [number(size) for size in tf.unstack(tf.convert_to_tensor(self._progress))[2:]]

    def multiply_learning_rate(self, factor):
        """Multiplies the rate of all further updates, of a schedule too.

        All workers must call it alike, between updates. The factor is part of the state.

        Args:
            factor: Float.

        Raises:
            ValueError: The optimizer follows a schedule, and its window cannot vary.
        """
        if not self._has_schedule():
            self.learning_rate = float(tf.convert_to_tensor(self.learning_rate)) * factor
        elif self._rate_factor is None:
            raise ValueError(
                "The rate of a schedule can be multiplied only if `vary_window()` was "
                f"called before the optimizer was built. Received: {self.name}, which "
                f"follows {self._learning_rate!r}."
            )
        else:
            self._rate_factor.assign(self._rate_factor * factor)

    def schedule_state(self):
        """What a checkpoint keeps of it, whatever the division of a batch: a dict that
        JSON can hold, or `None` where a schedule needs no more than the updates."""
        if self._progress is None:
            return None
        return {
            "examples": number(self._examples_so_far()),
            "first_batch": self._sizes()[1],
            "rate_factor": float(tf.convert_to_tensor(self._rate_factor)),
        }

    def restore_schedule(self, examples, first_batch, rate_factor):
        """Takes what `schedule_state` gave, after the count of updates is restored."""
        if self._progress is None:
            return
        self.count_examples(self._sizes()[0], first_batch, examples)
        self._rate_factor.assign(rate_factor)

    def _tell_what_schedules_count(self):
        """Warns once in a process, at a first step: Keras documents another count."""
        global _told
        schedule, steps = self._learning_rate, int(self.gradient_accumulation_steps or 1)
        counts_calls = isinstance(
            schedule, keras.optimizers.schedules.LearningRateSchedule
        ) and not isinstance(schedule, UpdateSchedule)
        if _told or not counts_calls or steps == 1 or comm.rank():
            return
        _told = True
        warnings.warn(
            f"{type(schedule).__name__} counts updates in {type(self).__name__}: one for "
            f"the {steps} micro-batches that an update accumulates. Keras' own optimizers, "
            "and gsnr_tf before 0.2, count each micro-batch. If you multiplied its numbers "
            "of steps (decay_steps, boundaries …) by gradient_accumulation_steps because "
            f"of that, divide them by {steps}.",
            stacklevel=2,
        )
