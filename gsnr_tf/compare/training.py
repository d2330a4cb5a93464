"""One run of a task, and many of them on one traced model."""

import functools
import math
import time

import keras
import numpy as np
import tensorflow as tf

from gsnr_tf import comm
from gsnr_tf.compare import baselines
from gsnr_tf.compare.task import Split
from gsnr_tf.optimizers.gsnr import GSNROptimizer
from gsnr_tf.schedules import WarmupCosine


def updates_of(task, rows, batch):
    """How many updates of `batch` examples fit into the task's epochs."""
    return int(task.epochs * rows) // batch


def own_decay(name):
    """Values of the decay that an optimizer has of its own, a tuple, empty if it has none.

    AdamW stands for that decay: with the task's L2 it would be Adam.
    """
    return getattr(baselines.of(name), "weight_decays", ())


def values_of(task, name):
    """What an optimizer tries of what is tuned beside the rate, an ascending tuple."""
    own = task.regularizer is not None and own_decay(name)
    return own or tuple(task.regularizers)


def tuned(task, contender, value):
    """Who gets the value of a task's regularizer.

    Decay belongs to the step where an optimizer has an argument for it: L2 in the loss
    would be taken for signal, since every sample of the gradient has it alike.

    Args:
        task: A `Task`.
        contender: A `Contender`.
        value: Float, or `None`.

    Returns:
        `(of_model, of_optimizer)`: arguments of `Task.build_model` and of the optimizer.
    """
    if task.regularizer is None:
        return {}, {}
    if own_decay(contender.rule):
        return {}, {"weight_decay": value}
    if task.regularizer == "weight_decay":
        return {}, {"weight_decay": value}
    if task.l2_pattern and contender.kind != "base":
        return {}, {"l2": {task.l2_pattern: value}}
    return {task.regularizer: value}, {}


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
        regularizer: Float, the value of what the task tunes beside the rate, or `None`.
    """

    def __init__(self, task, data, contender, batch, regularizer=None):
        self._task, self._batch = task, batch
        self._samples = contender.samples
        self._comm = comm.choose("auto", tf.distribute.get_strategy())
        steps = self._samples // comm.size()
        self.updates = updates_of(task, data.train.rows, batch)
        self._splits = Splits(data, task.resplit)
        self._peak = tf.Variable(0.0)
        schedule = WarmupCosine(self._peak, self.updates)
        of_model, of_optimizer = tuned(task, contender, regularizer)
        self._build_model = functools.partial(task.build_model, **of_model)
        self._model = self._build_model()
        optimizer = contender.optimizer(schedule, steps, **of_optimizer)
        # Horovod's collectives have no XLA kernels.
        self._model.compile(optimizer=optimizer, loss=task.loss, jit_compile=False)
        optimizer.build(self._model.trainable_variables)
        self._fresh_state = [state.numpy() for state in optimizer.full_state()]
        self._paused = _Paused()
        self._train = tf.nest.map_structure(tf.constant, tuple(self._splits.pool))
        self._update = tf.function(self._update_by_all_samples, autograph=False)
        self._update(self._own(np.arange(batch) % data.train.rows))

    def run(self, learning_rate, seed, whole=True, evaluations=9):
        """Trains from fresh weights, or on from where a run of the same stopped.

        Args:
            learning_rate: Float, the peak of the schedule.
            seed: Int, of the weights, of the split and of the order of the examples.
            whole: Whether to train to the end; else for the first third of the updates.
            evaluations: Int, how often the validation split is scored in all.

        Returns:
            A dict that JSON can hold, the same on all ranks but for the scores, which
            are rank 0's; and, where the task has any, "row_scores", a vector of the test
            split. A run whose loss or score is not finite ends there and has
            `diverged: True` and no scores. Training and test split are scored at the end
            of whole runs.
        """
        history, seconds, done = self._start(learning_rate, seed)
        marks = np.linspace(0, self.updates, min(evaluations, self.updates) + 1)
        marks = marks[1:].round().astype(int)
        if not whole:
            marks = marks[: max(1, round(len(marks) / 3))]
        validation = self._splits.validation(seed)
        for mark in (int(mark) for mark in marks if mark > done):
            self._model.reset_metrics()
            start = time.perf_counter()
            for update in range(done, mark):
                self._update(self._own(self._rows(seed, update)))
            loss = float(self._model.get_metrics_result()["loss"])
            seconds += time.perf_counter() - start
            done = mark
            score = self._score(validation)
            # All ranks decide alike, or some would wait for the others for ever.
            said = self._comm.gather((loss, score))
            loss, score = float(np.mean([of_rank for of_rank, _ in said])), said[0][1]
            if not (math.isfinite(loss) and math.isfinite(score)):
                return self._result(history, seconds, done, diverged=True)
            row = {"update": done, "seconds": seconds, "loss": loss, "validation": score}
            history.append({**row, "noise": self._noise_share()})
        result = self._result(history, seconds, done, diverged=False)
        if not whole:
            position = [*history], seconds, done
            self._paused.keep((learning_rate, seed), position, self._state())
            return result
        # As many training rows as test rows: their noise is alike.
        test = self._splits.test
        result["test"] = self._score(test)
        result["train"] = self._score(self._splits.train(seed).head(test.rows))
        if comm.rank() == 0:
            result["row_scores"] = self._task.row_scores(self._model, *test)
            result["measures"] = self._task.measures(self._model, *test)
        return result

    def _result(self, history, seconds, done, diverged):
        return {
            "diverged": diverged,
            "updates": done,
            "seconds": seconds,
            "validation": None if diverged else history[-1]["validation"],
            "history": history,
        }

    def _noise_share(self):
        """S2/((k − 1)·S1) of the last update: the share of noise in the squared mean gradient,
        over all variables. `None` where the optimizer does not see samples."""
        optimizer = self._model.optimizer
        if not isinstance(optimizer, GSNROptimizer):
            return None
        ratio = float(optimizer.gsnr)
        return 1 / ((self._samples - 1) * ratio) if ratio else None

    def _start(self, learning_rate, seed):
        """Fresh weights, or those of a run that stopped; its history, seconds, updates."""
        optimizer = self._model.optimizer
        paused = self._paused.take((learning_rate, seed))
        if paused is None:
            keras.utils.set_random_seed(seed)
            fresh = [variable.numpy() for variable in self._build_model().variables]
            paused = ([], 0.0, 0), [*fresh, *self._fresh_state]
        position, values = paused
        state = [*self._model.variables, *optimizer.full_state()]
        for variable, value in zip(state, values, strict=True):
            variable.assign(value)
        optimizer.reset_window()
        self._peak.assign(learning_rate)
        return position

    def _state(self):
        state = [*self._model.variables, *self._model.optimizer.full_state()]
        values = [variable.numpy() for variable in state]
        # Slots in slices are read from the ranks that hold them: none may train on before.
        self._comm.gather(True)
        return values

    def _rows(self, seed, update):
        """The rows of an update: the epochs, each in an order of its own, end to end.

        They depend on seed, batch and update alone, not on the ranks or the optimizer.
        """
        train, _ = self._splits.rows(seed)
        rows = len(train)
        first, last = update * self._batch, (update + 1) * self._batch
        epochs = range(first // rows, (last - 1) // rows + 1)
        order = np.concatenate([_order(rows, seed, epoch) for epoch in epochs])
        start = first - epochs[0] * rows
        return train[order[start : start + self._batch]]

    def _own(self, rows):
        """This rank's samples, `[steps, rows of a sample]`."""
        samples = rows.reshape([self._samples, -1])[comm.rank() :: comm.size()]
        return tf.constant(samples, tf.int32)

    def _update_by_all_samples(self, samples):
        def one(index):
            rows = samples[index]
            batch = tf.nest.map_structure(lambda column: tf.gather(column, rows), self._train)
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


class Splits:
    """Training and validation rows, shared out anew for each seed, and the test split.

    Args:
        data: The task's `Data`.
        anew: Whether they are; else every seed has the task's own.

    Attributes:
        pool: `Split` of training rows and validation rows, those of the task in order.
        test: `Split`, the same for all seeds.
    """

    def __init__(self, data, anew):
        self.test, self._anew, self._trained = data.test, anew, data.train.rows
        join = functools.partial(tf.nest.map_structure, lambda *c: np.concatenate(c))
        self.pool = Split(*join(tuple(data.train), tuple(data.validation)))
        self._last = None, None

    def rows(self, seed):
        """Row numbers in the pool: those to train on, and those to validate by."""
        if self._last[0] != seed:
            order = np.arange(self.pool.rows)
            if self._anew:
                # The third number sets it apart from every `_order`.
                order = np.random.default_rng([seed, 0, 1]).permutation(order)
            self._last = seed, np.split(order, [self._trained])
        return self._last[1]

    def train(self, seed):
        """`Split` of the rows to train on."""
        return self._of(self.rows(seed)[0])

    def validation(self, seed):
        """`Split` of the rows to choose by."""
        return self._of(self.rows(seed)[1])

    def _of(self, rows):
        return Split(*tf.nest.map_structure(lambda column: column[rows], tuple(self.pool)))


class _Paused:
    """Runs that have stopped and may go on: what is too much is forgotten, oldest first."""

    def __init__(self, limit=2**28):
        self._limit, self._kept = limit, {}

    def keep(self, key, position, values):
        """Keeps a run's position and state, a list of arrays."""
        self._kept[key] = position, values
        while sum(v.nbytes for _, vs in self._kept.values() for v in vs) > self._limit:
            del self._kept[next(iter(self._kept))]

    def take(self, key):
        """What was kept, and no longer is; `None` if nothing was."""
        return self._kept.pop(key, None)
