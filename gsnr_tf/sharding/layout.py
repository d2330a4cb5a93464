"""All variables of an optimizer as one flat vector of blocks."""

import math

import numpy as np
import tensorflow as tf

# Each variable begins a block, so that what belongs to one variable can be summed or
# looked up by block, a hundredth of the work of doing so by element.
BLOCK = 128


class FlatLayout:
    """Where each variable lies in one flat vector.

    Attributes:
        dtype: float64 where any variable is float64, else float32: statistics are
            never kept in less.
        size: Number of elements, the padding of variables to whole blocks included.
        owner: int32 array `[blocks]`, the variable that each block belongs to.
    """

    def __init__(self, variables):
        self._shapes = [tuple(variable.shape) for variable in variables]
        self._sizes = [math.prod(shape) for shape in self._shapes]
        blocks = [-(-size // BLOCK) for size in self._sizes]
        self.owner = np.repeat(np.arange(len(variables), dtype="int32"), blocks)
        self.size = len(self.owner) * BLOCK
        self._starts = BLOCK * np.concatenate([[0], np.cumsum(blocks)[:-1]]).astype(int)
        self._padding = [b * BLOCK - size for b, size in zip(blocks, self._sizes)]
        double = any(tf.as_dtype(v.dtype) == tf.float64 for v in variables)
        self.dtype = tf.float64 if double else tf.float32

    def pack(self, tensors):
        """One vector `[size]` of a tensor for each variable; `None` counts as zeros."""
        return self.pack_range(tensors, 0, self.size)

    def pack_range(self, tensors, start, stop):
        """Elements `start` to `stop` of `pack(tensors)`, without making the rest."""
        parts, zeros = [], 0
        for tensor, first, size, padding in zip(
            tensors, self._starts, self._sizes, self._padding
        ):
            low, high = max(start - first, 0), min(stop - first, size)
            if low < high and tensor is not None:
                if zeros:
                    parts.append(tf.zeros([zeros], self.dtype))
                    zeros = 0
                flat = tf.reshape(tensor, [-1])
                flat = flat if (low, high) == (0, size) else flat[low:high]
                parts.append(tf.cast(flat, self.dtype))
                low = high
            zeros += max(min(stop - first, size + padding) - max(low, 0), 0)
        if zeros or not parts:
            parts.append(tf.zeros([zeros], self.dtype))
        return parts[0] if len(parts) == 1 else tf.concat(parts, axis=0)

    def span(self, index):
        """First element and number of elements of a variable."""
        return int(self._starts[index]), self._sizes[index]

    def shape(self, index):
        return self._shapes[index]

    def unpack(self, flat):
        """A tensor of each variable's shape, in the order of the variables."""
        sizes = [n for pair in zip(self._sizes, self._padding) for n in pair]
        parts = tf.split(flat, sizes)[::2]
        return [tf.reshape(part, shape) for part, shape in zip(parts, self._shapes)]
