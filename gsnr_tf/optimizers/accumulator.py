"""Accumulation: the samples of a worker between two updates."""

import keras
import numpy as np
import tensorflow as tf

from gsnr_tf.sharding.state import VariableView
from gsnr_tf.stats import Moments
from gsnr_tf.stats.sparse import SparseMoments


class GradientAccumulator:
    """Moments of this worker's micro-batches since the last update.

    Each replica has its own. A checkpoint sees them variable by variable.

    Args:
        layout: The `BucketLayout`.
        weight: The `keras.Variable` with the sum of the weights, of an accumulator in the
            place of which this one comes; left out, it makes one.
    """

    def __init__(self, layout, weight=None):
        self._layout = layout
        self._weight = _made("weight", (), layout.dtype) if weight is None else weight
        self._windows = [_VectorWindow(bucket) for bucket in layout.buckets]
        self._windows += [_RowsWindow(tables) for tables in layout.tables]
        self.keeps_m2 = False
        self.views = self._views("mean")

    def keep_m2(self):
        """Keeps how far the micro-batches differ as well; to be called before any came."""
        if not self.keeps_m2:
            self.keeps_m2 = True
            for window in self._windows:
                window.keep_m2()
            self.views = [*self.views, *self._views("m2")]

    def _views(self, what):
        return [
            _View(self._windows[number], what, position)
            for number, position in self._layout.index_map
        ]

    @property
    def weight(self):
        """The `keras.Variable` with the sum of the weights."""
        return self._weight

    def with_sample(self, sample, weight):
        """Moments of each part of the layout, with one more sample.

        Args:
            sample: As `BucketLayout.pack` gives it.
            weight: Scalar.
        """
        so_far = tf.convert_to_tensor(self._weight)
        return [
            window.moments(so_far).add(part, weight) for window, part in zip(self._windows, sample)
        ]

    def store(self, moments):
        """Keeps what `with_sample` gave."""
        self._weight.value.assign(moments[0].weight)
        for window, of_part in zip(self._windows, moments):
            window.store(of_part)

    def restart(self):
        """Forgets all samples."""
        self._weight.value.assign(tf.zeros((), self._layout.dtype))
        for window in self._windows:
            window.restart()


def _made(name, shape, dtype):
    # Workers meet while the first train step is traced.
    with tf.init_scope():
        return keras.Variable(
            tf.zeros(shape, dtype),
            dtype=dtype.name,
            trainable=False,
            synchronization="on_read",
            aggregation="mean",
            name=f"accumulated_{name}",
        )


class _VectorWindow:
    """What is accumulated of a bucket."""

    def __init__(self, bucket):
        self.part = bucket
        self._of = {"mean": _made("mean", (bucket.size,), bucket.dtype)}

    def keep_m2(self):
        self._of["m2"] = _made("m2", (self.part.size,), self.part.dtype)

    def moments(self, weight):
        m2 = tf.convert_to_tensor(self._of["m2"]) if "m2" in self._of else None
        return Moments(weight, tf.convert_to_tensor(self._of["mean"]), m2)

    def store(self, moments):
        for name, vector in self._of.items():
            vector.value.assign(getattr(moments, name))

    def restart(self):
        for vector in self._of.values():
            vector.value.assign(tf.zeros(vector.shape, vector.dtype))

    def read(self, what, position):
        """An array of a variable's shape."""
        start, size = self.part.span(position)
        whole = keras.ops.convert_to_numpy(self._of[what])
        return whole[start : start + size].reshape(self.part.shapes[position])

    def write(self, what, position, value):
        start, size = self.part.span(position)
        whole = keras.ops.convert_to_numpy(self._of[what]).copy()
        whole[start : start + size] = value.reshape(-1)
        self._of[what].assign(whole)


class _RowsWindow:
    """What is accumulated of some tables: of the rows that were touched, as many as they be."""

    def __init__(self, tables):
        self.part = tables
        # Read at run time: where one branch of a conditional assigns a shape that is a
        # constant, TensorFlow's optimizer of graphs takes it for that of the other branch.
        with tf.init_scope():
            self._none = tf.Variable(0, trainable=False, name="no_rows")
        self._keys = _rows("keys", (), tables.key_dtype)
        self._of = {"mean": _rows("mean", (tables.width,), tables.dtype)}

    def keep_m2(self):
        self._of["m2"] = _rows("m2", (self.part.width,), self.part.dtype)

    def moments(self, weight):
        m2 = tf.convert_to_tensor(self._of["m2"]) if "m2" in self._of else None
        keys, mean = tf.convert_to_tensor(self._keys), tf.convert_to_tensor(self._of["mean"])
        return SparseMoments(weight, keys, mean, m2)

    def store(self, moments):
        self._keys.assign(moments.keys)
        for name, rows in self._of.items():
            rows.assign(getattr(moments, name))

    def restart(self):
        for variable in [self._keys, *self._of.values()]:
            shape = [tf.convert_to_tensor(self._none), *variable.shape[1:]]
            variable.assign(tf.zeros(shape, variable.dtype))

    def read(self, what, position):
        """An array of a table's shape: of several replicas, the mean."""
        copies = [self._read(*copy, position) for copy in self._copies(what)]
        return np.mean(copies, axis=0).reshape(self.part.shapes[position])

    def _copies(self, what):
        keys, rows = (_local(v) for v in (self._keys, self._of[what]))
        return [(k.numpy(), r.numpy()) for k, r in zip(keys, rows)]

    def _read(self, keys, rows, position):
        own, ids = self._own(keys, position)
        whole = np.zeros([self.part.shapes[position][0], self.part.width], rows.dtype)
        whole[ids] = rows[own]
        return whole

    def _own(self, keys, position):
        """Which of the keys are of one table, and their rows in it."""
        ids = keys - self.part.offsets[position]
        own = (ids >= 0) & (ids < self.part.shapes[position][0])
        return own, ids[own]

    def write(self, what, position, value):
        """Gives it of one table; of the others it stays. Alike on all replicas."""
        held = {name: self._copies(name)[0] for name in self._of}
        value = value.reshape(-1, self.part.width)
        ids = np.flatnonzero(value.any(axis=1)) + self.part.offsets[position]
        keys = np.union1d(held[what][0], ids).astype(self.part.key_dtype.as_numpy_dtype)
        for name, (before, rows) in held.items():
            whole = np.zeros([len(keys), self.part.width], rows.dtype)
            whole[np.searchsorted(keys, before)] = rows
            if name == what:
                own, ids = self._own(keys, position)
                whole[own] = value[ids]
            for copy in _local(self._of[name]):
                copy.assign(whole)
        for copy in _local(self._keys):
            copy.assign(keys)


def _rows(name, shape, dtype):
    """A variable of any number of rows, which begins with none."""
    with tf.init_scope():
        return tf.Variable(
            tf.zeros([0, *shape], dtype),
            shape=[None, *shape],
            trainable=False,
            synchronization=tf.VariableSynchronization.ON_READ,
            aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            name=f"accumulated_{name}",
        )


def _local(variable):
    """The copies of a variable that the replicas of this process have."""
    return getattr(variable, "values", (variable,))


class _View(VariableView):
    """What is accumulated of one variable's gradient."""

    def __init__(self, window, what, position):
        self._window, self._what, self._position = window, what, position
        self.shape = window.part.shapes[position]
        self.dtype = window.part.dtype

    def numpy(self):
        return self._window.read(self._what, self._position)

    def assign(self, value):
        value = keras.ops.convert_to_numpy(value)
        self._window.write(self._what, self._position, value.astype(self.dtype.as_numpy_dtype))
