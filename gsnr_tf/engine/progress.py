"""What rank 0 says while a job trains."""

import time

import keras


class Progress:
    """Prints a line now and then, and hands numbers to sinks, update by update.

    Args:
        engine: The `Engine`.
        every: Int, updates between two lines, or `None`.
        sinks: Objects with `write_events([(name, value, examples)])`.
    """

    def __init__(self, engine, every, sinks=()):
        self._engine = engine
        self._every = every
        self._sinks = sinks
        self.restart()

    def restart(self):
        """Forgets how long updates took: something else comes between."""
        self._since, self._from = time.perf_counter(), self._engine.global_steps

    def update(self, loss):
        """Tells of the update that was just done, whose loss is given, a float."""
        engine = self._engine
        line = self._every and engine.global_steps % self._every == 0
        if not (line or self._sinks):
            return
        rate, step = engine.get_lr()[0], engine.global_steps
        if self._sinks:
            self._write(loss, rate)
        if not line:
            return
        seconds = time.perf_counter() - self._since
        speed = (step - self._from) * engine.train_batch_size() / seconds
        print(
            f"step={step}, skipped={engine.skipped_steps}, lr={rate:.4g}, "
            f"loss={loss:.4f}, examples/s={speed:.0f}",
            flush=True,
        )
        self.restart()

    def _write(self, loss, rate):
        events = {"train_loss": loss, "lr": rate}
        if self._engine.loss_scale is not None:
            events["loss_scale"] = self._engine.loss_scale
        examples = self._engine.global_samples
        rows = [(f"Train/Samples/{name}", v, examples) for name, v in events.items()]
        for sink in self._sinks:
            sink.write_events(rows)


class ProgressCallback(keras.callbacks.Callback):
    """`Progress` under `fit`, where the loss is the mean of the epoch so far."""

    def __init__(self, progress, micro_batches):
        super().__init__()
        self._progress = progress
        self._micro_batches = micro_batches

    def on_epoch_begin(self, epoch, logs=None):
        self._progress.restart()

    def on_train_batch_end(self, batch, logs=None):
        if (batch + 1) % self._micro_batches == 0:
            self._progress.update(float(logs["loss"]))

    def on_train_end(self, logs=None):
        self._progress.restart()
