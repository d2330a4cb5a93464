"""Metrics of all ranks as one."""

import numbers

import keras
import numpy as np

from gsnr_tf import comm


class MetricAverageCallback(keras.callbacks.Callback):
    """Replaces each epoch's metrics by their mean over the ranks.

    Put it before callbacks that read them (early stopping, checkpoints, learning
    rate plateaus): these must decide alike on all ranks. A metric that only some
    ranks report, such as validation on rank 0, is the mean over those, on all ranks.
    """

    def on_epoch_end(self, epoch, logs=None):
        if logs is None or comm.size() == 1:
            return
        communicator = comm.choose("auto", self.model.distribute_strategy)
        mine = {k: float(v) for k, v in logs.items() if isinstance(v, numbers.Number)}
        reports = communicator.gather(mine)
        for name in sorted(set().union(*reports)):
            logs[name] = float(np.mean([r[name] for r in reports if name in r]))
