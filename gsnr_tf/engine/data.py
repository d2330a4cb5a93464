"""Micro-batches of a rank, from examples that every rank can read."""

import hashlib

import keras
import numpy as np
import tensorflow as tf

from gsnr_tf.data import shard


class Examples:
    """All examples of a job, gone through in one order whatever the number of ranks.

    A training batch is the same set of examples, cut into the same micro-batches, on 1,
    2 or 4 ranks. An epoch is a whole number of training batches: what is left over is
    left out, and with arrays it is other examples in each epoch.

    Args:
        data: Tuple `(x, y)` or `(x, y, sample_weight)` of arrays, or nested structures
            of them, with one row for each example; or an unbatched `tf.data.Dataset`.
            The same on all ranks.
        batch: The `Batch`.
        communicator: The `Communicator`.
        rank: Int.
        seed: Int, of the order of arrays. `None` keeps the order they have.
        updates: Int, training batches of an epoch. `None`: as many as there are.

    Attributes:
        updates: Training batches of an epoch.

    Raises:
        ValueError: Fewer examples than a training batch, arrays of different lengths, a
            dataset that is batched or of unknown length, or ranks with different data.
    """

    def __init__(self, data, batch, communicator, rank, seed=0, updates=None):
        self._batch, self._rank, self._seed = batch, rank, seed
        self._data = data
        self._is_dataset = isinstance(data, tf.data.Dataset)
        if self._is_dataset:
            _check_unbatched(data)
            self._number = int(data.cardinality())
        else:
            arrays = tf.nest.map_structure(np.asarray, tuple(data))
            self._number = _rows(arrays)
            _check_same(arrays, communicator)
            self._data = tf.nest.map_structure(_as_tensor, arrays)
        self.updates = updates or self._count_updates()
        if not self._is_dataset and self.updates * batch.train > self._number:
            raise ValueError(
                f"Received {self._number} examples, which make "
                f"{self._number // batch.train} training batches of {batch.train}; "
                f"steps_per_epoch={updates} asks for more."
            )

    def _count_updates(self):
        if self._number < 0:
            raise ValueError(
                "Received a dataset of unknown or infinite length. Say how many"
                " training batches make an epoch by fit(steps_per_epoch=…), or its"
                " number of examples n by"
                " dataset.apply(tf.data.experimental.assert_cardinality(n))."
            )
        if self._number < self._batch.train:
            raise ValueError(
                f"Received {self._number} examples, fewer than train_batch_size="
                f"{self._batch.train}: not enough for one update."
            )
        return self._number // self._batch.train

    def micro_batches(self, update):
        """Endless dataset of this rank's micro-batches, from a training batch on.

        Args:
            update: Int, counted over all epochs, from 0, in training batches of
                `batch.train`.
        """
        epoch, within = divmod(update, self.updates)
        if self._is_dataset:
            micro = self._of_dataset()
        else:
            epochs = tf.data.Dataset.range(epoch, tf.int64.max)
            micro = epochs.flat_map(self._of_arrays)
            micro = micro.map(self._look_up, num_parallel_calls=tf.data.AUTOTUNE)
        return micro.skip(within * self._batch.accumulation).prefetch(2)

    def _of_dataset(self):
        size = self._batch.micro * self._batch.ranks
        data = self._data
        if self._number >= 0:
            data = data.take(self.updates * self._batch.train)
        return shard(data.repeat().batch(size, drop_remainder=True))

    def _of_arrays(self, epoch):
        """This rank's row numbers in an epoch, `[micro]` each."""
        order = tf.range(self._number, dtype=tf.int64)
        if self._seed is not None:
            seed = tf.stack([tf.constant(self._seed, tf.int64), epoch])
            order = tf.random.experimental.stateless_shuffle(order, seed)
        batch = self._batch
        parts = tf.reshape(
            order[: self.updates * batch.train],
            [self.updates * batch.accumulation, batch.ranks, batch.micro],
        )
        return tf.data.Dataset.from_tensor_slices(parts[:, self._rank])

    def _look_up(self, rows):
        return tf.nest.map_structure(lambda array: tf.gather(array, rows), self._data)


def makes_its_own_batches(data):
    """Whether `Model.fit` must take data as it is: a generator, or Keras' datasets."""
    return isinstance(data, keras.utils.PyDataset) or hasattr(data, "__next__")


def split_micro_batches(data, batch):
    """The micro-batches of one rank's rows of a training batch, a list of tuples.

    Raises:
        ValueError: There are not as many rows as the configuration says.
    """
    arrays = tf.nest.map_structure(np.asarray, tuple(data))
    rows, expected = _rows(arrays), batch.micro * batch.accumulation
    if rows != expected:
        raise ValueError(
            f"A rank's part of a training batch has {batch.micro} ×"
            f" {batch.accumulation} = {expected} rows (train_micro_batch_size_per_gpu ×"
            f" gradient_accumulation_steps). Received: {rows} rows."
        )

    def part(start):
        return tf.nest.map_structure(lambda a: a[start : start + batch.micro], arrays)

    return [part(start) for start in range(0, rows, batch.micro)]


def specs_of(data, batch):
    """`tf.TensorSpec` of a micro-batch: of a dataset of them, or of arrays."""
    if isinstance(data, tf.data.Dataset):
        data = data.element_spec
    elif makes_its_own_batches(data):
        raise ValueError(
            "flops_profiler needs to know the shapes of a micro-batch, and cannot see "
            f"those of a {type(data).__name__}. Give arrays or a tf.data.Dataset, or "
            "switch it off."
        )
    return tf.nest.map_structure(
        lambda a: tf.TensorSpec((batch.micro, *a.shape[1:]), tf.as_dtype(a.dtype)), data
    )


def split_off(share, *arrays):
    """Arrays without their last part, and that part as validation data, as in Keras."""
    if arrays[0] is None or isinstance(arrays[0], tf.data.Dataset):
        raise ValueError(
            "validation_split takes arrays, given to this call. Received: "
            f"x={arrays[0]!r}. Use validation_data."
        )
    if not 0 < share < 1:
        raise ValueError(f"validation_split must be in (0, 1). Received: validation_split={share}")
    at = int(_rows([a for a in arrays if a is not None]) * (1 - share))

    def rows(part):
        return tuple(
            None if a is None else tf.nest.map_structure(lambda x: x[part], a) for a in arrays
        )

    return rows(slice(None, at)), rows(slice(at, None))


def _as_tensor(array):
    # float64 becomes Keras' float type, as in `Model.fit`.
    kind = keras.config.floatx() if array.dtype == np.float64 else None
    # All examples may be more than a GPU holds.
    with tf.device("CPU"):
        return tf.convert_to_tensor(array, kind)


def _rows(data):
    lengths = {len(array) for array in tf.nest.flatten(data)}
    if len(lengths) != 1:
        raise ValueError(
            "All arrays must have one row for each example. Received arrays of "
            f"{sorted(lengths)} rows."
        )
    return lengths.pop()


def _check_unbatched(dataset):
    for spec in tf.nest.flatten(dataset.element_spec):
        if spec.shape.rank and spec.shape[0] is None:
            raise ValueError(
                "The engine makes the batches, by the sizes of the configuration."
                " Received a dataset that seems to be batched: its elements are"
                f" {spec}. Leave `.batch()` out, or add `.unbatch()`."
            )


def _check_same(data, communicator):
    """The first and the last row tell whether ranks have read the same."""
    digest = hashlib.sha256()
    for array in tf.nest.flatten(data):
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array[[0, -1]] if len(array) else array))
    digests = communicator.gather(digest.hexdigest())
    others = [rank for rank, other in enumerate(digests) if other != digests[0]]
    if others:
        raise ValueError(
            f"The ranks have different training data: that of rank(s) {others} is not "
            "that of rank 0. Give all ranks the same examples in the same order; the "
            "engine shares them out."
        )
