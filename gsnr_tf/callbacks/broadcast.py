"""All ranks begin with the state of one."""

import logging

import keras

from gsnr_tf import comm
from gsnr_tf.callbacks.seeds import is_seed, separate_seeds
from gsnr_tf.callbacks.skipped import SkippedUpdates
from gsnr_tf.optimizers import stopping
from gsnr_tf.optimizers.base import DistributedStep
from gsnr_tf.optimizers.inner import inner_optimizer

_log = logging.getLogger("gsnr_tf")


class BroadcastGlobalVariablesCallback(keras.callbacks.Callback):
    """Gives all ranks the state of one rank when training begins.

    The optimizers of this package share the weights by themselves at their first
    step. This callback shares everything else as well: BatchNorm statistics,
    optimizer state and counters, also where only one rank has loaded a checkpoint.
    Random seeds of layers are each rank's own, so that dropout differs between ranks:
    where ranks begin with the same, as after `keras.utils.set_random_seed(0)` on all of
    them, all but rank 0 get others, which follow from seed and rank. The same script
    draws the same numbers again, a second `fit` goes on with them, and rank 0 draws
    what a single process draws.

    While training lasts it does what concerns all ranks together: updates that are
    skipped leave no trace in moving statistics (`SkippedUpdates`), and if a callback of
    any rank sets `model.stop_training` when an epoch ends, all ranks stop there.

    Where Keras would compile the train step with XLA (`jit_compile="auto"` does on
    GPUs), which has no kernels for Horovod's collectives, it switches that off.

    Args:
        root_rank: Int, the rank whose state all get. Defaults to 0.
    """

    def __init__(self, root_rank=0):
        super().__init__()
        self.root_rank = root_rank
        self._done = False
        self._skipped = SkippedUpdates()

    def set_model(self, model):
        super().set_model(model)
        self._skipped.set_model(model)
        if comm.size() > 1 and model.jit_compile:
            model.jit_compile = False
            if comm.rank() == 0:
                _log.warning(
                    "jit_compile is switched off: XLA has no kernels for Horovod's collectives."
                )

    def on_train_begin(self, logs=None):
        self._done = False
        if self.model.built:
            self._broadcast()
        self._skipped.on_train_begin(logs)

    def on_train_batch_end(self, batch, logs=None):
        # A model without an input shape has its variables only now.
        if not self._done:
            self._broadcast()
        self._skipped.on_train_batch_end(batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        self._skipped.on_epoch_end(epoch, logs)
        stopping.agree_at_the_end_of_this_epoch(self.model)

    def _broadcast(self):
        model, optimizer = self.model, self.model.optimizer
        if not optimizer.built:
            optimizer.build(model.trainable_variables)
        inner = inner_optimizer(optimizer)
        if isinstance(inner, DistributedStep):
            inner.connect(self.root_rank)
            inner.share_state(self.root_rank)
        communicator = comm.choose("auto", model.distribute_strategy)
        state = [variable for variable in model.variables if not is_seed(variable)]
        communicator.broadcast(state + optimizer.variables, self.root_rank)
        separate_seeds(model, communicator)
        self._done = True
