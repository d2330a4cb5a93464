"""A rank's shard of a bucket, as the shape in which kernels compute on it."""

import tensorflow as tf

from gsnr_tf.sharding.buckets import BLOCK


class Shard:
    """Blocks `first` to `last` of a bucket, with what concerns its variables.

    In a shard of a single variable a vector has the shape `[elements]` and the
    variable's own numbers are scalars; otherwise `[blocks, block]` and `[blocks, 1]`,
    each block's variable's. Where variables are judged by row a block is a row, and a
    vector has the shape `[rows, width]` also in a shard of a single one.

    Attributes:
        start, stop: The elements of the bucket.
        shape: Shape of the shard's vectors.
    """

    def __init__(self, bucket, first, last):
        self.bucket = bucket
        self.start, self.stop = bucket.at(first), bucket.at(last)
        self.size = self.stop - self.start
        flat = bucket.alone and not bucket.by_row
        self.shape = [self.size] if flat else [last - first, bucket.block]
        self._variable_of_block = bucket.variable_of_block[first:last]

    @classmethod
    def whole(cls, bucket):
        """The shard that is all of a bucket."""
        return cls(bucket, 0, bucket.blocks)

    def broadcast(self, values):
        """From a number for each variable `[variables]` to what broadcasts to `shape`."""
        if self.bucket.alone:
            return values[0]
        return tf.gather(values, self._variable_of_block)[:, None]

    def sums(self, *vectors):
        """Sums over each variable's elements, `[variables, len(vectors)]`.

        By row, vectors may be `[rows, 1]`.
        """
        if self.bucket.alone:
            return tf.stack([self._sum(vector) for vector in vectors])[None]
        sums = tf.stack([_row_sums(vector) for vector in vectors], axis=1)
        return tf.math.unsorted_segment_sum(sums, self._variable_of_block, len(self.bucket.indices))

    def _sum(self, vector):
        if self.bucket.by_row:
            return tf.reduce_sum(_row_sums(vector))
        return _flat_sum(vector)

    def cut(self, tensors):
        """This shard of the bucket's variables, a tensor each, in `shape`."""
        flat = self.bucket.pack_range(tensors, self.start, self.stop)
        return tf.reshape(flat, self.shape)

    def in_shape(self, *vectors):
        """Flat vectors in `shape`."""
        return [tf.reshape(vector, self.shape) for vector in vectors]


def _row_sums(rows):
    # XLA adds up the numbers of a row one by one; a product with ones is fast.
    return tf.linalg.matvec(rows, tf.ones([rows.shape[1]], rows.dtype))


def _flat_sum(vector):
    """Of `[n]`, where n need not be a number of blocks."""
    whole = vector.shape[0] // BLOCK * BLOCK
    rows = tf.reshape(vector[:whole], [-1, BLOCK])
    return tf.reduce_sum(_row_sums(rows)) + tf.reduce_sum(vector[whole:])
