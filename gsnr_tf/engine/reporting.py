"""What is told while a job trains: lines, events, times and a profile."""

import time
from pathlib import Path

import keras

from gsnr_tf import comm
from gsnr_tf.engine.flops import FlopsProfiler
from gsnr_tf.engine.phases import PhaseTimer


class Reporter:
    """Observes the updates of an engine; all ranks alike, rank 0 speaks and writes.

    Args:
        engine: The `Engine`, whose optimizer is built and whose train step is not
            traced.
        communicator: The `Communicator`.
        trial: The `TuneTrial` that the job is, or `None`.
    """

    def __init__(self, engine, communicator, trial=None):
        config = engine.config
        self._engine, self._comm = engine, communicator
        self._every = config.steps_per_print
        self._first = comm.rank() == 0
        self._sinks = _sinks(config) if self._first else []
        self._breakdown = self._profiler = None
        if config.wall_clock_breakdown:
            self._breakdown = PhaseTimer(engine.model, communicator)
        if config.flops_profiler.enabled:
            profile = config.flops_profiler
            self._profiler = FlopsProfiler(engine, profile.profile_step, profile.output_file)
        self._trial = trial
        self._meters = [m for m in (self._breakdown, self._profiler) if m is not None]
        self.restart()

    @property
    def profiles(self):
        """Whether an update is still to be profiled."""
        return self._profiler is not None

    @property
    def is_trial(self):
        """Whether the job is a trial of `gsnr-tf tune`, which leaves no trace."""
        return self._trial is not None

    def restart(self):
        """Forgets how long updates took: something else comes between."""
        self._since, self._from = time.perf_counter(), self._engine.global_samples

    def begin(self):
        """Before each micro-batch."""
        for meter in self._meters:
            meter.begin()

    def end(self):
        """After each micro-batch."""
        for meter in self._meters:
            meter.end()

    def update(self, loss, specs=None):
        """After each update.

        Args:
            loss: Float, the loss of the update.
            specs: `tf.TensorSpec` of a micro-batch, which a profile needs.
        """
        if self._profiler:
            self._profiler.update(self._comm, specs, self._first)
        line = bool(self._every) and self._engine.global_steps % self._every == 0
        if self._sinks:
            self._write(loss)
        if line:
            self._print(loss)
        if self._breakdown:
            self._breakdown.restart()
        if self._trial:
            self._trial.update(self._engine, self._comm)

    def _print(self, loss):
        engine = self._engine
        lines = [_line(engine, loss, self._since, self._from)] if self._first else []
        if self._breakdown:
            told = enumerate(self._comm.gather(self._breakdown.told()))
            lines += [f"  rank {rank}: {times}" for rank, times in told]
        if self._first:
            print("\n".join(lines), flush=True)
        self.restart()

    def _write(self, loss):
        engine = self._engine
        events = {"train_loss": loss, "lr": engine.get_lr()[0]}
        if engine.loss_scale is not None:
            events["loss_scale"] = engine.loss_scale
        if engine.config.gsnr.batch_ramp:
            events["train_batch_size"] = engine.train_batch_size()
        examples = engine.global_samples
        rows = [(f"Train/Samples/{name}", v, examples) for name, v in events.items()]
        for sink in self._sinks:
            sink.write_events(rows)


def _line(engine, loss, since, examples_before):
    speed = (engine.global_samples - examples_before) / (time.perf_counter() - since)
    in_a_row = engine.consecutive_skips
    told = {
        "step": engine.global_steps,
        "skipped": engine.skipped_steps,
        **({"in a row": in_a_row} if in_a_row else {}),
        "lr": f"{engine.get_lr()[0]:.4g}",
        "batch": engine.train_batch_size(),
        "loss": f"{loss:.4f}",
        "examples/s": f"{speed:.0f}",
    }
    return ", ".join(f"{name}={value}" for name, value in told.items())


def _sinks(config):
    """Sinks that are enabled: objects with `write_events([(name, value, step)])`."""
    found = []
    for name, section in (
        ("TensorBoardSink", config.tensorboard),
        ("CSVSink", config.csv_monitor),
    ):
        if section.enabled:
            from gsnr_tf.monitor import sinks

            folder = Path(section.output_path) / section.job_name
            found.append(sinks.Sinks(folder, [getattr(sinks, name)]))
    return found


class UpdateCallback(keras.callbacks.Callback):
    """`BatchState` and `Reporter` under `fit`, where the loss is the mean of the epoch."""

    def __init__(self, updates, progress, specs):
        super().__init__()
        self._updates = updates
        self._progress = progress
        self._specs = specs

    def on_epoch_begin(self, epoch, logs=None):
        self._progress.restart()
        # Micro-batches of the update so far, and the number of the last one.
        self._within, self._last = 0, -1

    def on_train_batch_begin(self, batch, logs=None):
        if not self._within and self._updates.grows:
            self._updates.shorten(self.params["steps"] - batch)
        self._progress.begin()

    def on_train_batch_end(self, batch, logs=None):
        self._progress.end()
        # More than one, with `steps_per_execution`.
        self._within += batch - self._last
        self._last = batch
        if self._within >= self._updates.batch.accumulation:
            self._within = 0
            self._progress.update(float(logs["loss"]), self._specs)
            self._updates.end()

    def on_train_end(self, logs=None):
        self._progress.restart()
