"""Accumulation: the samples of a worker between two updates."""

import keras
import tensorflow as tf

from gsnr_tf.sharding.state import VariableView
from gsnr_tf.stats import Moments


class GradientAccumulator:
    """Moments of this worker's micro-batches since the last update.

    Each replica has its own. A checkpoint sees them variable by variable.

    Args:
        layout: The `BucketLayout`.
    """

    def __init__(self, layout):
        self._layout = layout
        self._weight = self._accumulator("weight", ())
        self._means = [self._accumulator("mean", (b.size,)) for b in layout.buckets]
        self._m2s = [None] * len(layout.buckets)
        self.views = self._views_of(self._means)

    def keep_m2(self):
        """Keeps how far the micro-batches differ as well; to be called before any came."""
        if self._m2s[0] is None:
            self._m2s = [self._accumulator("m2", (b.size,)) for b in self._layout.buckets]
            self.views = [*self.views, *self._views_of(self._m2s)]

    def _views_of(self, vectors):
        return [_View(self._layout, vectors, index) for index in range(len(self._layout.index_map))]

    def _accumulator(self, name, shape):
        # Workers meet while the first train step is traced.
        with tf.init_scope():
            return keras.Variable(
                tf.zeros(shape, self._layout.dtype),
                dtype=self._layout.dtype.name,
                trainable=False,
                synchronization="on_read",
                aggregation="mean",
                name=f"accumulated_{name}",
            )

    @property
    def weight(self):
        """The `keras.Variable` with the sum of the weights."""
        return self._weight

    def with_sample(self, sample, weight):
        """Moments of each bucket, with one more sample.

        Args:
            sample: List of vectors, one for each bucket.
            weight: Scalar.
        """
        so_far = tf.convert_to_tensor(self._weight)
        return [
            Moments(
                so_far,
                tf.convert_to_tensor(mean),
                None if m2 is None else tf.convert_to_tensor(m2),
            ).add(vector, weight)
            for mean, m2, vector in zip(self._means, self._m2s, sample)
        ]

    def store(self, moments):
        """Keeps what `with_sample` gave."""
        self._weight.value.assign(moments[0].weight)
        for mean, m2, bucket in zip(self._means, self._m2s, moments):
            mean.value.assign(bucket.mean)
            if m2 is not None:
                m2.value.assign(bucket.m2)

    def restart(self):
        """Forgets all samples."""
        m2s = [m2 for m2 in self._m2s if m2 is not None]
        for variable in [self._weight, *self._means, *m2s]:
            variable.value.assign(tf.zeros(variable.shape, self._layout.dtype))


class _View(VariableView):
    """What is accumulated of one variable's gradient."""

    def __init__(self, layout, vectors, index):
        number, position = layout.index_map[index]
        bucket = layout.buckets[number]
        start, size = bucket.span(position)
        self._vector = vectors[number]
        self._span = slice(start, start + size)
        self.shape = bucket.shapes[position]
        self.dtype = bucket.dtype

    def numpy(self):
        return keras.ops.convert_to_numpy(self._vector)[self._span].reshape(self.shape)

    def assign(self, value):
        flat = keras.ops.convert_to_numpy(self._vector).copy()
        flat[self._span] = keras.ops.convert_to_numpy(value).reshape(-1)
        self._vector.assign(flat)
