"""Records what the optimizer sees."""

import datetime
import math
import numbers
import time
import warnings

import keras
import tensorflow as tf

from gsnr_tf import comm
from gsnr_tf._version import __version__
from gsnr_tf.monitor.measures import Measures
from gsnr_tf.monitor.run import Run, set_aside_damaged, write_info
from gsnr_tf.monitor.sinks import FAILURES, Sinks
from gsnr_tf.optimizers.exclusions import path_of
from gsnr_tf.optimizers.gsnr import GSNROptimizer
from gsnr_tf.optimizers.inner import inner_optimizer


class GSNRMonitor(keras.callbacks.Callback):
    """Records GSNR, noise scale, norms, speed and metrics while `fit` trains.

    What is recorded, and under which names: gsnr_tf/monitor/README.md. It goes into
    `log_dir` as JSON lines, CSV and for TensorBoard; `gsnr-tf report log_dir` makes a
    page of it. The step of everything is the number of examples that all workers have
    trained on. A run that is killed leaves readable files, and one that is resumed with
    the optimizer's state goes on in them.

    All ranks must have this callback; rank 0 writes. Weights are the same, to the bit,
    with it and without it.

    Args:
        log_dir: Directory of this run alone.
        every: Int, updates from record to record. Defaults to 10.
        batch_size: Int, examples that all workers together bring to one call of the
            train step. By default Keras' loss metric is asked, which knows unless the
            model has a `train_step` of its own.

    Raises:
        ValueError: An argument is out of range, or the batch size is not to be known.
        TypeError: The model's optimizer is not of the GSNR family.
    """

    def __init__(self, log_dir, every=10, batch_size=None):
        super().__init__()
        for name, value in (("every", every), ("batch_size", batch_size or 1)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1. Received: {name}={value}")
        self.log_dir = log_dir
        self.every = every
        self.batch_size = batch_size
        self._sinks = None

    def set_model(self, model):
        super().set_model(model)
        self._optimizer = inner_optimizer(model)
        if not isinstance(self._optimizer, GSNROptimizer):
            raise TypeError(
                "GSNRMonitor records what a GSNR optimizer measures. Received: "
                f"{type(self._optimizer).__name__}. With gamma=1 a GSNR optimizer is "
                "its base optimizer, and measures all the same."
            )
        self._optimizer.watch(self.every)
        # A train step traced before now records nothing.
        model.train_function = None

    # ---- the course of a training -----------------------------------------------

    def on_train_begin(self, logs=None):
        if self.model.built:
            if not self.model.optimizer.built:
                self.model.optimizer.build(self.model.trainable_variables)
            self._optimizer.connect()
        self._writes = comm.rank() == 0
        if not self._writes:
            return
        self._close()
        self._measures = self._loss = None
        self._workers = comm.size()
        self._epoch, self._counted, self._call = 0, 0.0, 0.0
        self._timed_examples = self._seconds = 0.0
        self._warm = False
        self._recorded = self._updates = int(_number(self._optimizer.iterations))
        self._set_aside_damaged()
        self._examples = self._examples_before(self._updates)
        self._sinks = Sinks(self.log_dir)
        if self._examples is not None:
            self._write_begin()

    def on_epoch_begin(self, epoch, logs=None):
        if self._writes:
            self._epoch, self._counted = epoch + 1, 0.0

    def on_train_batch_begin(self, batch, logs=None):
        self._began = time.time()

    def on_train_batch_end(self, batch, logs=None):
        if not self._writes:
            return
        seconds = time.time() - self._began
        self._count()
        if self._warm:  # the first call is traced
            self._timed_examples += self._call
            self._seconds += seconds
        self._warm = True
        if self._optimizer.watched_update() > self._recorded:
            self._record(logs or {})

    def on_epoch_end(self, epoch, logs=None):
        if not self._writes:
            return
        logs = {k: v for k, v in (logs or {}).items() if isinstance(v, numbers.Number)}
        events = []
        for name, value in logs.items():
            if name.startswith("val_"):
                events.append((f"validation/{name[4:]}", value))
                if name[4:] in logs:
                    events.append((f"gap/{name[4:]}", logs[name[4:]] - value))
            else:
                events.append((f"train/{name}", value))
        self._write(events)

    def on_train_end(self, logs=None):
        if self._writes:
            self._close()

    def _set_aside_damaged(self):
        """Leaves a damaged record of an earlier run beside the new one."""
        try:
            aside = set_aside_damaged(self.log_dir)
        except FAILURES as error:
            warnings.warn(
                f"The record in {self.log_dir} cannot be read: {error}. Training goes on.",
                stacklevel=2,
            )
            return
        if aside is not None:
            warnings.warn(
                f"The record in {self.log_dir} is damaged. It is kept as {aside.name}, and a new"
                " one begins.",
                stacklevel=2,
            )

    # ---- examples ----------------------------------------------------------------

    def _examples_before(self, updates):
        """Examples that a resumed training has seen, or `None`: not known yet."""
        if not updates:
            return 0.0
        try:
            run = Run(self.log_dir)
        except (OSError, ValueError):
            return None
        steps, counts = run.series("progress/updates")
        before = counts <= updates
        if not before.any():
            return None
        last = steps[before][-1]
        examples, batches = run.series("batch/examples")
        known = batches[examples <= last]
        if not len(known):
            return None
        return float(last + (updates - counts[before][-1]) * known[-1])

    def _count(self):
        """Adds the examples of the last call."""
        if self.batch_size:
            self._call = float(self.batch_size)
        else:
            count = self._examples_of_epoch() * self._workers
            # Whoever evaluates within an epoch starts the metric again.
            self._call = count - (self._counted if count >= self._counted else 0.0)
            self._counted = count
        if self._examples is None:  # resumed without a record
            steps = int(_number(self._optimizer.accumulation_steps))
            self._examples = self._updates * self._batch(steps)
            self._write_begin()
        self._examples += self._call

    def _examples_of_epoch(self):
        if self._loss is None:  # to ask the model takes longer than to ask the metric
            found = [m for m in self.model.metrics if m.name == "loss"]
            counting = (m for m in found if hasattr(m, "count") and _number(m.count))
            # A train step of its own may leave Keras' metric alone.
            self._loss = next(counting, None)
        count = _number(self._loss.count) if self._loss else 0
        if count:
            return count
        raise ValueError(
            "GSNRMonitor cannot see how many examples a step has: the model has no "
            "loss metric of Keras. Received: batch_size=None; pass the examples that "
            "all workers together bring to one call of the train step."
        )

    def _batch(self, accumulation):
        """Examples of an update, over all workers."""
        return self._call * accumulation

    # ---- writing -----------------------------------------------------------------

    def _record(self, logs):
        record, optimizer = self._optimizer.watched(), self._optimizer
        if self._measures is None:
            self._measures = self._begin_measures()
        batch = self._batch(record.accumulation)
        self._recorded = record.update
        events = [
            *((f"train/{name}", _number(value)) for name, value in logs.items()),
            ("progress/updates", record.update),
            ("progress/skipped", int(optimizer.skipped_steps)),
            ("progress/epoch", self._epoch),
            ("batch/examples", batch),
            ("batch/samples", record.samples),
            ("batch/accumulation", record.accumulation),
            ("batch/learning_rate", _number(optimizer.learning_rate)),
            *self._measures.of(record.summary, record.samples, batch),
        ]
        if self._seconds:
            speed = self._timed_examples / self._seconds
            events.append(("speed/examples_per_second", speed))
        self._timed_examples = self._seconds = 0.0
        reduce_begins, reduced, updated = record.times
        if self.model.steps_per_execution == 1:
            events.append(("time/backward", reduce_begins - self._began))
        events += [
            ("time/communication", reduced - reduce_begins),
            ("time/update", updated - reduced),
        ]
        self._write(
            [
                (name, value)
                for name, value in events
                # Within XLA there is no clock.
                if not (name.startswith("time/") and math.isnan(value))
            ]
        )

    def _write_begin(self):
        # Readers ignore what an earlier run recorded after this point: it was killed.
        self._write([("progress/begun", self._updates)])

    def _write(self, events):
        assert self._sinks is not None  # training has begun
        self._sinks.write_events([(n, v, self._examples) for n, v in events])

    def _begin_measures(self):
        """Writes what is run, and begins its measures."""
        optimizer = self._optimizer
        variables = optimizer.trained_variables
        self._write_info(
            {
                "model": self.model.name,
                "optimizer": type(optimizer).__name__,
                "arguments": optimizer.get_config(),
                "variables": [{"path": path_of(v), "shape": list(v.shape)} for v in variables],
                "workers": optimizer.workers,
                "every": self.every,
                "started": datetime.datetime.now().astimezone().isoformat("T", "seconds"),
                "versions": {
                    "gsnr_tf": __version__,
                    "keras": keras.__version__,
                    "tensorflow": tf.__version__,
                },
            },
        )
        sizes = [math.prod(v.shape) for v in variables]
        paths = [path_of(v) for v in variables]
        return Measures(paths, sizes, optimizer.gamma, optimizer.ceiling)

    def _write_info(self, info):
        try:
            write_info(self.log_dir, info)
        except FAILURES as error:
            warnings.warn(
                f"What is run is not written to {self.log_dir}: {error}. Training goes on.",
                stacklevel=2,
            )

    def _close(self):
        if self._sinks is not None:
            self._sinks.close()
            self._sinks = None


def _number(value):
    """A float of a number, tensor or variable, also of one that replicas share."""
    # Keras' convert_to_numpy takes twice as long, and every batch pays for it.
    return float(value.numpy() if hasattr(value, "numpy") else value)
