"""All variables of an optimizer as one flat vector, so that one collective moves them."""

import math

import tensorflow as tf


class FlatLayout:
    """Where each variable lies in one flat vector.

    Attributes:
        dtype: float64 where any variable is float64, else float32: statistics are
            never kept in less.
        size: Number of elements.
    """

    def __init__(self, variables):
        self._shapes = [tuple(variable.shape) for variable in variables]
        self._sizes = [math.prod(shape) for shape in self._shapes]
        self.size = sum(self._sizes)
        double = any(tf.as_dtype(v.dtype) == tf.float64 for v in variables)
        self.dtype = tf.float64 if double else tf.float32

    def pack(self, tensors):
        """One vector `[size]` of a tensor for each variable; `None` counts as zeros."""
        parts = [
            tf.zeros([size], self.dtype)
            if tensor is None
            else tf.cast(tf.reshape(tensor, [-1]), self.dtype)
            for tensor, size in zip(tensors, self._sizes)
        ]
        return parts[0] if len(parts) == 1 else tf.concat(parts, axis=0)

    def unpack(self, flat):
        """A tensor of each variable's shape, in the order of the variables."""
        parts = [flat] if len(self._sizes) == 1 else tf.split(flat, self._sizes)
        return [tf.reshape(part, shape) for part, shape in zip(parts, self._shapes)]
