"""A small number for each variable, by which ranks see that their weights differ."""

import functools

import numpy as np
import tensorflow as tf

# Numbers below 2^6: their squares, summed over up to 4,000 ranks, are exact in float32.
_BITS = 6
_PICKED = 8
_ODD = np.uint32(2654435761)  # Knuth's multiplier, 2^32 divided by the golden ratio


@functools.partial(tf.function, jit_compile=True, autograph=False)
def fingerprints(variables):
    """Fingerprints of some elements of each variable, evenly spread.

    Whoever assigns or loads a variable changes nearly all of its elements, so that a few
    tell, but for one time in 2^6.

    Args:
        variables: List of floating-point tensors.

    Returns:
        float32 tensor `[variables]` of whole numbers.
    """
    return tf.stack([_fingerprint(variable) for variable in variables])


def _fingerprint(tensor):
    size = tensor.shape.num_elements()
    if not size:
        return tf.zeros([])
    places = np.unique(np.linspace(0, size - 1, _PICKED).astype("int32"))
    picked = tf.gather(tf.reshape(tensor, [-1]), places)
    bits = tf.bitcast(tf.cast(picked, tf.float32), tf.uint32)
    factors = tf.constant((2 * np.arange(len(places), dtype="uint32") + 1) * _ODD)
    mixed = tf.reduce_sum(tf.bitcast(bits * factors, tf.int32))
    mixed = tf.bitwise.right_shift(tf.bitcast(mixed, tf.uint32), np.uint32(32 - _BITS))
    return tf.cast(tf.cast(mixed, tf.int32), tf.float32)


def all_alike(total, squares, ranks):
    """Whether summed fingerprints, and their squares, are those of equal ones."""
    total, squares = tf.cast(total, tf.int64), tf.cast(squares, tf.int64)
    return tf.equal(ranks * squares, total * total)
