"""A training that is told to end saves what it has, and goes on when started again."""

import shutil
from pathlib import Path

import keras

from gsnr_tf import comm
from gsnr_tf.optimizers.base import DistributedStep
from gsnr_tf.optimizers.inner import inner_optimizer
from gsnr_tf.resilience import checkpoint
from gsnr_tf.resilience.preemption import Notice, any_saved, exit_saved, say_resumed

_TAG = "preempted-"


class SaveOnPreemption(keras.callbacks.Callback):
    """Saves at SIGTERM and ends the program with exit code 75; goes on from there later.

    When any rank receives SIGTERM while `fit` runs, the update is finished, and with
    several ranks one more, by which all learn of it. All state of model and optimizer is
    saved, and all ranks exit with `gsnr_tf.resilience.preemption.EXIT_CODE`. The same
    program, started again on any number of ranks, restores that when `fit` begins, and
    goes on with the epoch that was interrupted, or with the next if it was over. When a
    training ends in good order, what this callback has saved is deleted.

    The interrupted epoch begins anew, since where its data would go on is not known
    here: no update is lost, and the batches that it had done are trained once more, so
    that `iterations` ends higher by their updates. Who wants neither takes
    `gsnr_tf.ElasticState(model, folder=...)`, or the engine's `preemption_dir`.

    Use it on all ranks, last in the list of callbacks: those after it do not see the
    end. Who sends SIGTERM decides how long saving may take: `gsnr-tf run --grace`.

    Args:
        folder: Path, one that all ranks share, for one `fit` alone.
        engine: The `Engine` whose `fit` it is for. It then saves and restores by
            `save_checkpoint` and `load_checkpoint`, and nothing is deleted. Without
            need where the engine has a `preemption_dir`.

    Raises:
        ValueError: `fit` begins with an optimizer that is not of this package.
        CheckpointError: On all ranks, when `fit` begins: what was saved is damaged, or
            does not fit; when it ends: it cannot be saved.
    """

    def __init__(self, folder, engine=None):
        super().__init__()
        self._folder, self._engine = Path(folder), engine
        self._notice = Notice()
        self._epoch = self._batch = 0
        self._complete = False

    def on_train_begin(self, logs=None):
        optimizer = self.model.optimizer
        inner = inner_optimizer(optimizer)
        if not isinstance(inner, DistributedStep):
            raise ValueError(
                "SaveOnPreemption saves the state of optimizers of this package. "
                f"Received a model compiled with {type(inner).__name__}: wrap it in "
                "gsnr_tf.DistributedOptimizer."
            )
        self._comm = comm.choose("auto", self.model.distribute_strategy)
        self._begin()

    def _begin(self):
        self._restore()
        self._notice = Notice().__enter__()

    def _end(self):
        self._notice.__exit__()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch, self._complete = epoch, False

    def on_train_batch_end(self, batch, logs=None):
        self._batch = batch
        # A window that is half full is on this rank alone, and cannot be saved.
        if self._notice.received and self._between_updates():
            self.model.stop_training = True

    def on_epoch_end(self, epoch, logs=None):
        steps = self.params.get("steps")
        last = steps is not None and self._batch + 1 >= steps
        self._complete = last or not self.model.stop_training

    def on_train_end(self, logs=None):
        self.model._initial_epoch = None
        told = self._notice.on_any_rank(self._comm)
        self._end()
        if not told:
            self._forget()
            return
        exit_saved(self._save())

    # ---- what is saved and restored -----------------------------------------------

    def _between_updates(self):
        optimizer = self.model.optimizer
        inner = inner_optimizer(optimizer)
        return inner.at_window_start

    def _save(self):
        tag = f"{_TAG}{int(self.model.optimizer.iterations)}"
        state = self._position()
        if self._engine is not None:
            self._engine.save_checkpoint(self._folder, tag, client_state=state)
        else:
            checkpoint.save(self._folder, tag, self.model, self._comm, {}, state)
        return self._folder / tag

    def _position(self):
        """What is saved of where `fit` is, a dict."""
        return {"epoch": self._epoch + self._complete}

    def _restore(self):
        if not any_saved(self._folder, self._comm):
            return
        if not self.model.built:
            raise ValueError(
                f"{self._folder} has the state of a training to go on with, but the "
                "model has no variables yet: begin it with keras.Input, or call it once "
                "on a batch."
            )
        optimizer = self.model.optimizer
        if not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        if self._engine is not None:
            path, state = self._engine.load_checkpoint(self._folder)
        else:
            path, _, state = checkpoint.load(self._folder, None, self.model, self._comm)
        # Keras begins with this epoch, as it does for its own BackupAndRestore.
        self.model._initial_epoch = state.get("epoch")
        say_resumed(path)

    def _forget(self):
        if self._engine is not None or comm.rank():
            return
        newest = self._folder / "latest"
        if newest.exists() and newest.read_text().startswith(_TAG):
            newest.unlink()
            for path in self._folder.glob(f"{_TAG}*"):
                shutil.rmtree(path)
