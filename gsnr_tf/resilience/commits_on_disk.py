"""The commits of an elastic training as checkpoints, for when all ranks are gone."""

import shutil
import sys
import warnings
from pathlib import Path

import tensorflow as tf

from gsnr_tf import comm
from gsnr_tf.launch.output import COMMIT
from gsnr_tf.resilience import checkpoint
from gsnr_tf.resilience.checkpoint_files import CheckpointError, tags

_TAG = "commit-"
_KEPT = 2


class CommitsOnDisk:
    """Saves commits to a folder, and finds them again when the job starts anew.

    All ranks call each method at one point, while they are together.

    Args:
        model: The compiled, built `keras.Model`.
        folder: Path that all ranks share.
        every: Int, of so many commits one is saved.
    """

    def __init__(self, model, folder, every=1):
        self._model, self._folder, self._every = model, Path(folder), every
        self._commits = 0

    def commit(self, epoch, batch):
        """Saves the present state if it is this commit's turn.

        Where it cannot be saved, rank 0 warns: the commit in memory is made, and the
        one before it is still on disk.
        """
        self._commits += 1
        if self._commits % self._every:
            return
        tag = f"{_TAG}{int(self._model.optimizer.iterations)}"
        position = {"epoch": epoch, "batch": batch}
        try:
            checkpoint.save(self._folder, tag, self._model, _all_ranks(), {}, position)
        except CheckpointError as error:
            if comm.rank() == 0:
                warnings.warn(f"This commit is in memory alone: {error}", stacklevel=2)
            return
        if comm.rank() == 0:
            self._remove_old()
            _tell_launcher(self._folder / tag)

    def restore(self):
        """Takes the newest commit.

        Returns:
            `(epoch, batch)`, the position of the training; `None` where none was ever
            saved.

        Raises:
            CheckpointError: On all ranks; nothing has changed.
        """
        found = checkpoint.load(self._folder, None, self._model, _all_ranks())
        if comm.rank() == 0:
            goes_on = (
                f"Goes on from {found[0]}."
                if found
                else (f"There is no commit in {self._folder}: training begins.")
            )
            print(goes_on, file=sys.stderr, flush=True)
        if found is None:
            return None
        _, _, position = found
        return position["epoch"], position["batch"]

    def _remove_old(self):
        old = [tag for tag in tags(self._folder) if tag.startswith(_TAG)][:-_KEPT]
        for tag in old:
            shutil.rmtree(self._folder / tag, ignore_errors=True)


def _all_ranks():
    return comm.choose("auto", tf.distribute.get_strategy())


def _tell_launcher(path):
    """Tells `gsnr-tf run`, which may be on another host, by way of the error stream."""
    if comm.horovod.elastic():
        print(f"{COMMIT}{path.absolute()}", file=sys.stderr, flush=True)
