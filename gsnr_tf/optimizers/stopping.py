"""An end to `fit` that all ranks reach together.

Keras leaves the loop over batches as soon as `model.stop_training` is set, which a callback
does on one rank for itself: at a NaN in its own batch, or for a metric of its own rows. The
other ranks would wait for it in their next step. So the wish travels: what Keras reads is
whether any rank has wished so at the last update, and this rank takes part in one more
update, whose sums tell all of it.
"""

import sys

import keras

from gsnr_tf.optimizers.base import DistributedStep
from gsnr_tf.optimizers.inner import inner_optimizer

_WISH, _EPOCH_ENDS = "_gsnr_tf_wants_to_stop", "_gsnr_tf_epoch_ends"


def _header(model):
    """The `UpdateHeader` of the ranks that a model trains with, or `None`."""
    optimizer = _optimizer(model)
    return None if optimizer is None else optimizer.header


def _optimizer(model):
    optimizer = getattr(model, "optimizer", None)
    optimizer = inner_optimizer(optimizer)
    return optimizer if isinstance(optimizer, DistributedStep) else None


def agree_at_the_end_of_this_epoch(model):
    """Lets all ranks stop at once if any of them wishes to when this epoch has ended.

    To be called on all ranks while they end an epoch; without it a wish of then would
    travel with the first update of the next epoch.
    """
    if _header(model) is not None:
        model.__dict__[_EPOCH_ENDS] = True


def _get(model):
    wish, header = model.__dict__.get(_WISH, False), _header(model)
    if model.jit_compile and _optimizer(model) is not None:
        _optimizer(model).check_skips()
    if header is None:
        return wish
    if wish:
        header.wish_to_stop()
    # Who else asks does so on one rank, maybe.
    if model.__dict__.get(_EPOCH_ENDS) and sys._getframe(1).f_code.co_name == "fit":
        model.__dict__[_EPOCH_ENDS] = False
        header.ask_who_wants_to_stop()
    return bool(header.who_wants_to_stop())


def _set(model, wish):
    model.__dict__[_WISH] = wish
    header = _header(model)
    # As `fit` does when it begins.
    if header is not None and not wish:
        model.__dict__[_EPOCH_ENDS] = False
        header.forget_wishes()


# The one place where `fit` asks, whatever callbacks there are and in whatever order.
keras.Model.stop_training = property(
    _get, _set, doc="Whether `fit` is to end; on several ranks, once any of them says so."
)
