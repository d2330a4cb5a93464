"""Training that goes on when ranks are lost or added.

Horovod's `elastic.KerasState` fails under Keras 3; this takes its place.
"""

import functools

import keras
import numpy as np
import tensorflow as tf

from gsnr_tf import comm
from gsnr_tf.callbacks.seeds import is_seed
from gsnr_tf.comm import elastic
from gsnr_tf.optimizers.base import DistributedStep
from gsnr_tf.optimizers.inner import inner_optimizer
from gsnr_tf.resilience.commits_on_disk import CommitsOnDisk


def elastic_run(train):
    """Makes `train(state, ...)` go on with the ranks there are, when some come or go.

    Under `gsnr-tf run --host-discovery-script ...` (horovodrun's elastic mode) the
    function is called anew whenever ranks are lost, from the last commit on, and
    whenever hosts are added, from where it was. Anywhere else it is called once.

    What depends on the number of ranks belongs inside: `gsnr_tf.shard`, batch sizes.

    Args:
        train: Function of an `ElasticState` and anything else.

    Example:
        @gsnr_tf.elastic_run
        def train(state):
            state.fit(gsnr_tf.shard(dataset.batch(4096)), epochs=10)

        train(gsnr_tf.ElasticState(model))
    """

    @functools.wraps(train)
    def run(state, *args, **options):
        if not comm.horovod.elastic():
            state.sync()
            return train(state, *args, **options)
        return elastic.run(lambda: train(state, *args, **options), state)

    return run


class ElasticState:
    """All that a training has to keep when a rank dies, in the memory of every rank.

    And, where a folder is given, on disk, for the case that all ranks die: the next
    start of the job goes on from there.

    Weights, the whole state of the optimizer and the position in the data. A slice of
    an optimizer's state (`sharding="slices"`) is gone with its rank, and so might be
    whatever only one rank keeps. So a commit gathers slices and keeps the whole on
    every rank: whoever survives can give it to all others.

    Args:
        model: A compiled, built `keras.Model` with an optimizer of this package.
        commit_batches: Int, batches from one commit to the next; at most so many are
            done over when a rank dies. With `gradient_accumulation_steps` commits wait
            for the end of a window. Defaults to 100.
        folder: Path of a folder that all ranks share, for this training alone. Commits
            are saved there as checkpoints, of which the two newest stay. A commit that
            the disk does not take is a warning: the one before stays.
        save_commits: Int, every so many-th commit is saved. Defaults to 1.

    Attributes:
        epoch: Int, epochs done.
        batch: Int, batches done in this epoch.

    Raises:
        ValueError: The model is not compiled or not built, or `commit_batches` or
            `save_commits` < 1.
        TypeError: Its optimizer trains each rank on its own.
    """

    def __init__(self, model, commit_batches=100, folder=None, save_commits=1):
        for name, value in (
            ("commit_batches", commit_batches),
            ("save_commits", save_commits),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1. Received: {value}")
        if not getattr(model, "optimizer", None) or not model.built:
            raise ValueError(
                "ElasticState takes a model that is compiled and built, so that late "
                "ranks can take over its state. Give it an Input, and call `compile`. "
                f"Received: compiled={model.compiled}, built={model.built}"
            )
        self.model = model
        self.commit_batches = commit_batches
        self.epoch = self.batch = 0
        self.check_hosts = None
        self._saved = None
        self._disk = CommitsOnDisk(model, folder, save_commits) if folder else None
        self._optimizer = inner_optimizer(model)
        if not isinstance(self._optimizer, DistributedStep):
            raise TypeError(
                f"{type(self._optimizer).__name__} trains every rank on its own under "
                "Keras 3. Use an optimizer of gsnr_tf, or wrap it: "
                "gsnr_tf.DistributedOptimizer(optimizer)."
            )

    def fit(self, dataset, epochs, callbacks=(), **options):
        """`Model.fit` from where the training is, with commits.

        An epoch that was interrupted is finished first, by a `fit` of its own on what
        is left of the dataset.

        Args:
            dataset: `tf.data.Dataset` of this rank's part of every global batch.
                Batches that were done are skipped by their number, so an epoch's order
                should not change from run to run.
            epochs: Int, epochs in all.
            callbacks, options: As for `Model.fit`; `steps_per_epoch` as well.

        Returns:
            The `History` of the last `fit`, `None` if all epochs were done.
        """
        history = None
        if self.batch and self.epoch < epochs:
            rest, partial = dataset.skip(self.batch), dict(options)
            if options.get("steps_per_epoch"):
                partial["steps_per_epoch"] = options["steps_per_epoch"] - self.batch
            if _has_any(rest) and partial.get("steps_per_epoch") != 0:
                history = self._fit(rest, self.epoch + 1, callbacks, partial)
            else:
                self.epoch, self.batch = self.epoch + 1, 0
        if self.epoch < epochs:
            history = self._fit(dataset, epochs, callbacks, options)
        return history

    def _fit(self, dataset, epochs, callbacks, options):
        return self.model.fit(
            dataset,
            initial_epoch=self.epoch,
            epochs=epochs,
            # After the user's, whose epoch must not be cut off by an interruption.
            callbacks=[*callbacks, _Progress(self, self.batch)],
            **options,
        )

    # ---- commit and return ----------------------------------------------------

    def commit(self):
        """Keeps the present state. All ranks must call it, between two updates.

        In an elastic job, leaves the training here if hosts have come or gone.
        """
        self._save()
        if self._disk:
            self._disk.commit(self.epoch, self.batch)
        if self.check_hosts:
            self.check_hosts()

    def _save(self):
        values = [variable.numpy() for variable in self._state()]
        # In one assignment: a rank may be lost while slices are gathered.
        self._saved = (self.epoch, self.batch), values

    def restore(self):
        """Returns to the position of the last commit; `sync` restores all else."""
        if self._saved:
            (self.epoch, self.batch), _ = self._saved

    def sync(self):
        """Gives all ranks the newest commit of any of them, after the ranks changed.

        Where nothing has been committed yet, as at the start, it is the commit on disk,
        or, where there is none, the present state of rank 0.

        Raises:
            CheckpointError: On all ranks: the commit on disk is damaged, or does not
                fit.
        """
        # No collectives here: late ranks build, others do not.
        self._optimizer.disconnect()
        self.model.optimizer.build(self.model.trainable_variables)
        # Compiled for the ranks that there were.
        self.model.train_function = None
        if comm.size() == 1 and not comm.horovod.elastic():
            if self._saved:
                self._take(*self._saved)
            else:
                self._begin()
            return
        comm.horovod.set_together(True)
        with elastic.failures():
            self._take_newest()

    def _take_newest(self):
        """Gives all ranks the newest commit that any of them has in memory.

        That need not be rank 0's: it may be a new process, on a host that came back.
        """
        positions = elastic.of_all_ranks(self._saved and self._saved[0])
        known = [position for position in positions if position is not None]
        if not known:
            # The start of the job: all ranks are here for the first time.
            self._begin()
            positions = elastic.of_all_ranks(self._saved[0])
            known = positions
        newest = max(known)
        values = self._saved[1] if self._saved else [_zeros(v) for v in self._state()]
        self._take(newest, elastic.from_rank(positions.index(newest), values))

    def _begin(self):
        """Makes the state on disk, or else the present one, the first commit."""
        found = self._disk.restore() if self._disk else None
        if found:
            self.epoch, self.batch = found
        self._save()

    def _take(self, position, values):
        for variable, value in zip(self._state(), values, strict=True):
            variable.assign(value)
        # Commits are made between updates.
        self._optimizer.reset_window()
        self.epoch, self.batch = position
        self._saved = position, values

    def _state(self):
        """What all ranks have alike; random seeds stay each rank's own."""
        own = [v for v in self.model.variables if not is_seed(v)]
        return [*own, *self.model.optimizer.full_state()]


class _Progress(keras.callbacks.Callback):
    """Counts batches and epochs, and commits."""

    def __init__(self, state, done):
        super().__init__()
        self._elastic = state
        self._done = done
        self._since_commit = 0

    def on_train_batch_end(self, batch, logs=None):
        state = self._elastic
        state.batch = self._done + batch + 1
        self._since_commit += 1
        if self._since_commit >= state.commit_batches and self._at_end_of_window():
            self._since_commit = 0
            state.commit()

    def _at_end_of_window(self):
        return self._elastic._optimizer.at_window_start

    def on_epoch_end(self, epoch, logs=None):
        state = self._elastic
        state.epoch, state.batch, self._done = epoch + 1, 0, 0
        if self._at_end_of_window():
            self._since_commit = 0
            state.commit()


def _has_any(dataset):
    """Whether a dataset has an element; reads one where its size is not known."""
    size = int(dataset.cardinality())
    if size == tf.data.UNKNOWN_CARDINALITY:
        return any(True for _ in dataset.take(1))
    return size != 0


def _zeros(variable):
    return np.zeros(variable.shape, tf.as_dtype(variable.dtype).as_numpy_dtype)
