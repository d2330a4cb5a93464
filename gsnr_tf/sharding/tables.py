"""Embedding tables, of which an update touches some rows.

Tables of one width and dtype are one long table: a row is known by its key, its number
there, and what many small tables need goes in one collective.
"""

import math

import numpy as np
import tensorflow as tf

from gsnr_tf.comm.base import native
from gsnr_tf.stats.sparse import Rows, distinct


class Tables:
    """Some of an optimizer's variables, `[rows, …]` each, with rows of one width.

    Args:
        indices, shapes: Which of the optimizer's variables, and their shapes.
        dtype: Of statistics and slots.
        weights_dtype: The dtype that the variables share.
        by_row: Whether they are judged by row, not by element.

    Attributes:
        width: Elements of a row.
        rows: Number of rows of all of them.
        offsets: int64 array, the key of each variable's first row.
        key_dtype: int32 where it holds all keys, else int64.
    """

    def __init__(self, indices, shapes, dtype, weights_dtype, by_row):
        self.indices = indices
        self.shapes = shapes
        self.dtype = dtype
        self.weights_dtype = weights_dtype
        self.by_row = by_row
        self.width = math.prod(shapes[0][1:])
        counts = [shape[0] for shape in shapes]
        self.offsets = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype("int64")
        self.rows = sum(counts)
        self.key_dtype = tf.int32 if self.rows < 2**31 else tf.int64

    @property
    def alone(self):
        """Whether it is a single table."""
        return len(self.indices) == 1

    @property
    def size(self):
        """Elements of all of them."""
        return self.rows * self.width

    def owned(self, shard, shards):
        """How many rows shard `shard` of `shards` has: those whose key modulo `shards` it is."""
        return len(range(shard, self.rows, shards))

    def own_range(self, position, shard, shards):
        """Where the own rows of one table are among those of a shard: first, and behind."""
        first = int(self.offsets[position])
        last = first + self.shapes[position][0]
        return len(range(shard, first, shards)), len(range(shard, last, shards))

    def own_rows(self, position, shard, shards):
        """Which rows of one table a shard has, a slice."""
        return slice((shard - int(self.offsets[position])) % shards, None, shards)

    def pick(self, values):
        """Of a value for each of the optimizer's variables, those of these tables."""
        return [values[index] for index in self.indices]

    def pack(self, gradients):
        """`Rows` of a gradient for each table: `tf.IndexedSlices`, a tensor, or `None`."""
        parts = [
            self._part(gradient, offset, shape[0])
            for gradient, offset, shape in zip(gradients, self.offsets, self.shapes)
            if gradient is not None
        ]
        if not parts:
            return Rows(tf.zeros([0], self.key_dtype), tf.zeros([0, self.width], self.dtype))
        keys, values = (tf.concat(of, axis=0) for of in zip(*parts))
        return distinct(keys, values)

    def _part(self, gradient, offset, rows):
        if isinstance(gradient, tf.IndexedSlices):
            ids, values = gradient.indices, gradient.values
        else:
            ids, values = tf.range(rows), gradient
        keys = tf.reshape(tf.cast(ids, self.key_dtype), [-1]) + tf.cast(offset, self.key_dtype)
        return keys, tf.reshape(tf.cast(values, self.dtype), [-1, self.width])

    def table_of(self, keys):
        """int32 tensor `[rows]`: the position among these tables that each row is of."""
        if self.alone:
            return tf.zeros(tf.shape(keys), tf.int32)
        offsets = tf.constant(self.offsets, keys.dtype)
        return tf.searchsorted(offsets, keys, side="right") - 1

    def split(self, keys):
        """For each table which of the rows are its own, and their numbers in there."""
        if self.alone:
            return [(None, keys)]
        places = tf.dynamic_partition(
            tf.range(tf.size(keys)), self.table_of(keys), len(self.indices)
        )
        return [
            (place, tf.gather(keys, place) - tf.cast(offset, keys.dtype))
            for place, offset in zip(places, self.offsets)
        ]

    def read(self, variables, split):
        """Rows of the tables, `[rows, width]` in the dtype of statistics.

        Args:
            variables: One for each table, of which no more is read than these rows.
            split: What `split(keys)` gives.
        """
        parts = [
            tf.cast(tf.reshape(tf.gather(native(v), ids), [-1, self.width]), self.dtype)
            for v, (_, ids) in zip(variables, split)
        ]
        if self.alone:
            return parts[0]
        return tf.dynamic_stitch([place for place, _ in split], parts)

    def no_slots(self, split):
        """What there is of slots where a rule has none: `[rows, 0]`."""
        rows = sum(tf.size(ids) for _, ids in split)
        return tf.zeros([rows, 0], self.dtype)

    def of_table(self, position, values, split):
        """`tf.IndexedSlices` for table `position`, of values `[rows, width]` of all."""
        place, ids = split[position]
        own = values if place is None else tf.gather(values, place)
        shape = [-1, *self.shapes[position][1:]]
        return tf.IndexedSlices(tf.reshape(own, shape), ids)


class TouchedRows:
    """Rows of some tables, as elements of `Arithmetic`.

    Args:
        tables: The `Tables`.
        table: int32 tensor `[rows]`, which table each is of; −1: it counts for none.
    """

    def __init__(self, tables, table):
        self._tables = tables
        self._table = table

    def broadcast(self, values):
        """From a number for each table to `[rows, 1]`."""
        if self._tables.alone:
            return values[0]
        return tf.gather(values, tf.maximum(self._table, 0))[:, None]

    def sums(self, *vectors):
        """Sums over each table's rows, `[tables, len(vectors)]`; vectors are `[rows, …]`."""
        sums = tf.stack([tf.reduce_sum(vector, axis=1) for vector in vectors], axis=1)
        which = tf.one_hot(self._table, len(self._tables.indices), dtype=sums.dtype)
        return tf.matmul(which, sums, transpose_a=True)


def grouped(indices, variables, dtype, by_row):
    """List of `Tables` of these variables, those of one kind together.

    Args:
        indices: Which of the optimizer's variables are tables.
        variables: Pairs of shape and dtype, of all of its variables.
        dtype: Of statistics.
        by_row: For each variable whether it is judged by row.
    """
    kinds = {}
    for index in indices:
        shape, own = variables[index]
        kinds.setdefault((math.prod(shape[1:]), own, by_row[index]), []).append(index)
    return [
        Tables(group, [variables[index][0] for index in group], dtype, own, rows)
        for (_, own, rows), group in kinds.items()
    ]
