"""One run of a task, and many of them on one traced model."""

import functools
import math
import time

import keras
import numpy as np
import tensorflow as tf

from gsnr_tf import comm
from gsnr_tf.schedules import WarmupCosine


def updates_of(task, rows, batch):
    """How many updates of `batch` examples fit into the task's epochs."""
    return int(task.epochs * rows) // batch


class Trainer:
    """A model, an optimizer and a traced update, used for run after run.

    A run starts from weights, optimizer state and learning rate of its own, and the
    update is `model.train_step`, as in `fit`: what is spared is tracing, copying data
    to the device, and the callbacks.

    Args:
        task: A `Task`.
        data: Its `Data`.
        contender: A `Contender`.
        batch: Int, examples an update, over all ranks; a multiple of the samples.
    """

    def __init__(self, task, data, contender, batch):
        self._task, self._data, self._batch = task, data, batch
        self._samples = contender.samples
        self._comm = comm.choose("auto", tf.distribute.get_strategy())
        steps = self._samples // comm.size()
        self.updates = updates_of(task, data.train.rows, batch)
        self._peak = tf.Variable(0.0)
        schedule = WarmupCosine(self._peak, self.updates)
        self._model = task.build_model()
        optimizer = contender.optimizer(schedule, steps)
        # Horovod's collectives have no XLA kernels.
        self._model.compile(optimizer=optimizer, loss=task.loss, jit_compile=False)
        optimizer.build(self._model.trainable_variables)
        self._fresh_state = [state.numpy() for state in optimizer.full_state()]
        self._train = tf.nest.map_structure(tf.constant, tuple(data.train))
        self._update = tf.function(self._update_by_all_samples, autograph=False)
        self._update(self._own(np.arange(batch) % data.train.rows))

    def run(self, learning_rate, seed, evaluations=10, final=False):
        """Trains from fresh weights.

        Args:
            learning_rate: Float, the peak of the schedule.
            seed: Int, of the weights and of the order of the examples.
            evaluations: Int, how often the validation split is scored.
            final: Whether the training and the test split are scored at the end. A run
                that serves to choose something must not see the test split.

        Returns:
            A dict that JSON can hold, the same on all ranks but for the scores, which
            are rank 0's. A run whose loss or score is not finite ends there and has
            `diverged: True` and no scores.
        """
        self._reset(learning_rate, seed)
        history, seconds, done = [], 0.0, 0
        marks = np.linspace(0, self.updates, min(evaluations, self.updates) + 1)
        for mark in marks[1:].round().astype(int):
            self._model.reset_metrics()
            start = time.perf_counter()
            for update in range(done, mark):
                self._update(self._own(self._rows(seed, update)))
            loss = float(self._model.get_metrics_result()["loss"])
            seconds += time.perf_counter() - start
            done = int(mark)
            score = self._score(self._data.validation)
            # All ranks decide alike, or some would wait for the others for ever.
            said = self._comm.gather((loss, score))
            loss, score = float(np.mean([of_rank for of_rank, _ in said])), said[0][1]
            if not (math.isfinite(loss) and math.isfinite(score)):
                return self._result(history, seconds, done, diverged=True)
            row = {
                "update": done,
                "seconds": seconds,
                "loss": loss,
                "validation": score,
            }
            history.append(row)
        result = self._result(history, seconds, done, diverged=False)
        if final:
            # As many training rows as test rows: their noise is alike.
            result["test"] = self._score(self._data.test)
            result["train"] = self._score(self._data.train.head(self._data.test.rows))
        return result

    def _result(self, history, seconds, done, diverged):
        return {
            "diverged": diverged,
            "updates": done,
            "seconds": seconds,
            "validation": None if diverged else history[-1]["validation"],
            "history": history,
        }

    def _reset(self, learning_rate, seed):
        keras.utils.set_random_seed(seed)
        fresh = self._task.build_model()
        for variable, value in zip(self._model.variables, fresh.variables, strict=True):
            variable.assign(value)
        optimizer = self._model.optimizer
        for variable, value in zip(optimizer.full_state(), self._fresh_state, strict=True):
            variable.assign(value)
        optimizer.reset_window()
        self._peak.assign(learning_rate)

    def _rows(self, seed, update):
        """The rows of an update: the epochs, each in an order of its own, end to end.

        They depend on seed, batch and update alone, not on the ranks or the optimizer.
        """
        rows = self._data.train.rows
        first, last = update * self._batch, (update + 1) * self._batch
        epochs = range(first // rows, (last - 1) // rows + 1)
        order = np.concatenate([_order(rows, seed, epoch) for epoch in epochs])
        start = first - epochs[0] * rows
        return order[start : start + self._batch]

    def _own(self, rows):
        """This rank's samples, `[steps, rows of a sample]`."""
        samples = rows.reshape([self._samples, -1])[comm.rank() :: comm.size()]
        return tf.constant(samples, tf.int32)

    def _update_by_all_samples(self, samples):
        def one(index):
            rows = samples[index]
            batch = tf.nest.map_structure(
                lambda column: tf.gather(column, rows), self._train
            )
            self._model.train_step(batch)
            return index + 1

        tf.while_loop(lambda index: index < samples.shape[0], one, [tf.constant(0)])

    def _score(self, split):
        if comm.rank() != 0:  # all ranks hold the same weights, one may score them
            return math.nan
        return float(self._task.score(self._model, *split))


@functools.lru_cache(maxsize=2)
def _order(rows, seed, epoch):
    """The order of the rows in one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(rows)
