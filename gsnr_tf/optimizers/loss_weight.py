"""What each rank's loss was divided by, which is what its gradient weighs.

21 examples in batches of 8 leave a last one of 5, of which one rank has 2 and the other
3. Each rank's loss is the mean over its own examples, so the gradient of the whole batch
is the mean of the ranks' gradients weighted by 2 and 3. Keras tells an optimizer nothing of
this; but every loss of Keras, in `fit` and in a train step of one's own, is divided in one
function, which is watched here. Where the losses are of another kind, an optimizer is told
by `apply_gradients(..., examples=...)`.
"""

import functools
import threading
import weakref

import tensorflow as tf
from keras.src.losses import loss as keras_loss
from tensorflow.python.eager import record

_seen = threading.local()


class LossWeight:
    """By how much the gradient of the losses seen since the last update counts.

    Attributes:
        examples: Scalar float32 tensor, what the losses were divided by: examples, or the
            elements under a mask, or the sum of the weights. `None`: nothing is known, or
            the losses are sums.
        adds_up: Whether the losses are sums, so that those of all ranks add up.
    """

    def __init__(self, divisors):
        known = [divisor for divisor in divisors if divisor is not None]
        self.adds_up = bool(divisors) and not known
        self.examples = tf.add_n(known) if known else None


def of_this_step():
    """The `LossWeight` of the step that is being traced, or run, now."""
    divisors = _current()
    if divisors is None:
        return LossWeight([])
    _seen.used = True
    return LossWeight(divisors)


def _graph():
    return tf.compat.v1.get_default_graph()


def _current():
    """The list of this step, `None` where no loss was computed in its graph."""
    graph = getattr(_seen, "graph", None)
    return _seen.divisors if graph is not None and graph() is _graph() else None


def _note(divisor):
    if _current() is None or _seen.used:
        # The first loss of a graph, or after an update.
        _seen.graph, _seen.divisors, _seen.used = weakref.ref(_graph()), [], False
    _seen.divisors.append(divisor)


def _divisor(values, sample_weight, mask, reduction):
    """What a reduction divides by; `None` for a sum."""
    if reduction in (None, "none", "sum"):
        return None
    if reduction == "mean_with_sample_weight" and sample_weight is not None:
        weights = tf.convert_to_tensor(sample_weight)
        weights = keras_loss.apply_mask(weights, mask, values.dtype, reduction)
        return tf.cast(tf.reduce_sum(weights), tf.float32)
    if mask is not None:
        return tf.reduce_sum(tf.cast(mask, tf.float32))
    return tf.cast(tf.size(values), tf.float32)


def _watched(reduce_weighted_values):
    @functools.wraps(reduce_weighted_values)
    def reduce(values, sample_weight=None, mask=None, reduction="sum_over_batch_size", **kwargs):
        # Outside of a gradient tape it is a metric's, or an evaluation's.
        if record.could_possibly_record():
            standard = keras_loss.standardize_reduction(reduction)
            if standard not in (None, "none"):
                tensor = tf.convert_to_tensor(values)
                _note(_divisor(tensor, sample_weight, mask, standard))
        return reduce_weighted_values(values, sample_weight, mask, reduction, **kwargs)

    return reduce


keras_loss.reduce_weighted_values = _watched(keras_loss.reduce_weighted_values)
