"""All variables of an optimizer as a few flat vectors, the buckets, and its tables."""

import math

import numpy as np
import tensorflow as tf

from gsnr_tf.sharding import tables

# In a bucket of several variables each begins a block, so that what belongs to one
# variable can be summed or looked up by block, a hundredth of the work of doing so by
# element. Ranks divide all buckets between blocks.
BLOCK = 128
# A variable as large as this travels alone: its gradient is sent, and its new weights
# are received, as they are. Smaller ones share a copy. Smaller buckets would cost more
# in the latency of collectives than they spare.
BUCKET_BYTES = 4 * 2**20


class BucketLayout:
    """How variables are divided into buckets.

    Args:
        variables: The trainable variables of a model.
        bucket_bytes: Int, size at which a bucket is full.
        by_row: For each variable whether it is judged by row: then its rows stay whole,
            on one rank. Left out, none is.
        is_table: For each variable whether only the rows of it that are touched take part
            in an update. Left out, none is.

    Attributes:
        dtype: float64 where any variable is float64, else float32: statistics are
            never kept in less.
        carrier: Number of the bucket with which single numbers travel, or `None`.
        tables: List of `Tables`.
        parts: List of the buckets, then the tables. What there is of each variable, a
            gradient or its moments, is a list of one thing for each of these.
        buckets: List of `Bucket`. Backward yields the gradients of the last layers
            first, so these come first; where all variables are small, the buckets
            fill and leave in that order.
    """

    def __init__(self, variables, bucket_bytes=BUCKET_BYTES, by_row=None, is_table=None):
        double = any(tf.as_dtype(v.dtype) == tf.float64 for v in variables)
        self.dtype = tf.float64 if double else tf.float32
        self._variables = [(tuple(v.shape), tf.as_dtype(v.dtype)) for v in variables]
        full = bucket_bytes // self.dtype.size
        by_row = by_row or [False] * len(variables)
        self.is_table = list(is_table or [False] * len(variables))
        # Variables of one kind share a bucket: those by element, and those by row of a
        # width.
        kinds = [v.shape[-1] if rows else None for v, rows in zip(variables, by_row)]
        self.buckets, small, filled = [], {}, {}
        dense = [index for index, is_table in enumerate(self.is_table) if not is_table]
        sparse = [index for index, is_table in enumerate(self.is_table) if is_table]
        self.tables = tables.grouped(sparse, self._variables, self.dtype, by_row)
        for index in reversed(dense):
            size, width = math.prod(variables[index].shape), kinds[index]
            if size >= full:
                self.buckets.append(self._bucket([index], width))
                continue
            small.setdefault(width, []).append(index)
            filled[width] = filled.get(width, 0) + size
            if filled[width] >= full:
                self.buckets.append(self._bucket(small.pop(width), width))
                filled[width] = 0
        self.buckets += [self._bucket(left, width) for width, left in small.items()]
        self.parts = [*self.buckets, *self.tables]
        places = {
            index: (number, position)
            for number, part in enumerate(self.parts)
            for position, index in enumerate(part.indices)
        }
        # For each variable: number of its part, and its position in there.
        self.index_map = [places[index] for index in range(len(variables))]
        self.shapes = [shape for shape, _ in self._variables]
        self.size = sum(part.size for part in self.parts)
        self.carrier = self._carrier()

    def _carrier(self):
        """Number of the bucket with which single numbers travel, which costs a copy of it:
        the first that is made by copying anyway, or the smallest."""
        if not self.buckets:
            return None
        joined = [n for n, bucket in enumerate(self.buckets) if not bucket.alone]
        sizes = [bucket.size for bucket in self.buckets]
        return joined[0] if joined else sizes.index(min(sizes))

    def _bucket(self, indices, width):
        shapes, dtypes = zip(*(self._variables[index] for index in indices))
        alike = len(set(dtypes)) == 1
        weights_dtype = dtypes[0] if alike else self.dtype
        return Bucket(indices, shapes, self.dtype, weights_dtype, width)

    def pack(self, gradients):
        """Of a gradient for each variable, or `None` for zeros: a vector for each bucket,
        and `Rows` for each of `tables`."""
        return [part.pack(part.pick(gradients)) for part in self.parts]

    def unpack(self, vectors):
        """A tensor of each variable's shape, in the order of the variables, where none is
        a table."""
        parts = [bucket.unpack(v) for bucket, v in zip(self.buckets, vectors)]
        return [parts[number][position] for number, position in self.index_map]


class Bucket:
    """One variable as it is, or several of them in one vector of blocks.

    Args:
        indices, shapes: Which of the optimizer's variables, and their shapes.
        dtype: Of the vector, as of `BucketLayout`.
        weights_dtype: In which new weights travel: the variables' own, if they share
            one, since they will be cast to it.
        width: Int, elements of a row where the variables are judged by row; a block is
            a row then. `None` where they are not.

    Attributes:
        indices: Which of the optimizer's variables, in the order of the vector.
        size: Length of the vector, padding included.
        block: Elements of a block.
        by_row: Whether a block is a row.
        blocks: Number of blocks; the last one of a single variable may be short.
        variable_of_block: int32 array `[blocks]`, the position in `indices` of the variable
            that each block belongs to.
    """

    def __init__(self, indices, shapes, dtype, weights_dtype, width=None):
        self.indices = indices
        self.dtype = dtype
        self.weights_dtype = weights_dtype
        self.shapes = shapes
        self.alone = len(indices) == 1
        self.by_row = width is not None
        self.block = width or BLOCK
        self._sizes = [math.prod(shape) for shape in shapes]
        blocks = [-(-size // self.block) for size in self._sizes]
        self.blocks = sum(blocks)
        self.variable_of_block = np.repeat(np.arange(len(indices), dtype="int32"), blocks)
        self.size = self._sizes[0] if self.alone else self.blocks * self.block
        self._starts = self.block * np.concatenate([[0], np.cumsum(blocks)[:-1]]).astype(int)
        self._padding = [
            0 if self.alone else b * self.block - size for b, size in zip(blocks, self._sizes)
        ]

    def pick(self, values):
        """Of a value for each of the optimizer's variables, those of this bucket."""
        return [values[index] for index in self.indices]

    def activity(self, active):
        """Which variables have a gradient, a boolean tensor `[variables]`; `None`: all.

        Args:
            active: For each of the optimizer's variables a boolean, or a tensor where only
                other ranks know.
        """
        known = self.pick(active)
        if all(has is True for has in known):
            return None
        return tf.stack([tf.cast(has, tf.bool) for has in known])

    def at(self, block):
        """The element that a block begins with, or the end of the vector."""
        return min(block * self.block, self.size)

    def span(self, position):
        """First element and number of elements of a variable."""
        return int(self._starts[position]), self._sizes[position]

    def pack(self, tensors):
        """One vector `[size]` of a tensor for each variable; `None` counts as zeros."""
        return self.pack_range(tensors, 0, self.size)

    def pack_range(self, tensors, start, stop):
        """Elements `start` to `stop` of `pack(tensors)`, without making the rest."""
        parts, zeros = [], 0
        for tensor, first, size, padding in zip(tensors, self._starts, self._sizes, self._padding):
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

    def unpack(self, vector):
        """A tensor of each variable's shape."""
        if self.alone:
            return [tf.reshape(vector, self.shapes[0])]
        sizes = [n for pair in zip(self._sizes, self._padding) for n in pair]
        parts = tf.split(vector, sizes)[::2]
        return [tf.reshape(part, shape) for part, shape in zip(parts, self.shapes)]
