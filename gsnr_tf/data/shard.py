"""Each rank's rows of every global batch."""

import hashlib

import tensorflow as tf

from gsnr_tf import comm
from gsnr_tf.data.cardinality import joined_batches


def shard(dataset):
    """Gives each rank its rows of a dataset of global batches.

    Every example reaches exactly one rank, once an epoch, and all ranks take the
    same number of steps, whatever the sizes: a batch's rows are divided as evenly as
    they go, and a batch with fewer rows than there are ranks (the rest of an epoch)
    joins the one before, or, where it is the first, the one after. So several ranks see
    the very batches that one process would. Each rank reads the whole dataset and keeps
    its rows; the first batch is read once more, to compare it between ranks.

    Args:
        dataset: `tf.data.Dataset` whose elements are global batches, the same on
            all ranks and in the same order: give `shuffle` a seed. Any structure of
            dense tensors whose first dimension is the batch. With
            `gradient_accumulation_steps`, an element is a micro-batch of all ranks.

    Returns:
        A `tf.data.Dataset` of the same structure. In a single process, `dataset`. Its
        cardinality is known where it can be without reading the data, as it can for
        `batch` of a known number of examples.

    Raises:
        ValueError: An element has no batch dimension, or the ranks see different
            first batches.
        TypeError: An element is a sparse or ragged tensor.
        tf.errors.InvalidArgumentError: While reading, if the dataset has fewer
            examples than there are ranks.

    Example:
        dataset = tf.data.Dataset.from_tensor_slices((x, y))
        dataset = gsnr_tf.shard(dataset.shuffle(10_000, seed=1).batch(4096))
    """
    ranks, rank = comm.size(), comm.rank()
    specs = tf.nest.flatten(dataset.element_spec)
    _check_batched(specs)
    # In a single process as well: to read a batch moves a seeded `shuffle` on to its
    # next order, which must be the same for any number of ranks.
    first = _check_same_order(dataset)
    if ranks == 1:
        return dataset
    if not all(spec.shape[0] and spec.shape[0] >= ranks for spec in specs):
        number = joined_batches(dataset, ranks, first)
        dataset = _join_short_batches(dataset, ranks)
        if number is not None:
            dataset = dataset.apply(tf.data.experimental.assert_cardinality(number))

    def rows_of_rank(*batch):
        rows = _rows(batch)
        enough = tf.debugging.Assert(
            rows >= ranks, ["A dataset cannot be shared by", ranks, "ranks; rows:", rows]
        )
        with tf.control_dependencies([enough]):
            rows = tf.identity(rows)
        part = slice(rows * rank // ranks, rows * (rank + 1) // ranks)
        own = tf.nest.map_structure(lambda tensor: tensor[part], batch)
        return own if len(own) > 1 else own[0]

    return dataset.map(rows_of_rank, num_parallel_calls=tf.data.AUTOTUNE)


def _rows(batch):
    return tf.shape(tf.nest.flatten(batch)[0])[0]


def _check_batched(specs):
    for spec in specs:
        if not isinstance(spec, tf.TensorSpec):
            raise TypeError(
                f"shard takes dense tensors. Received: {spec}. Shard the dataset before "
                "you make its elements sparse or ragged."
            )
        if spec.shape.rank == 0:
            raise ValueError(
                "shard takes a dataset of batches, the global ones. Received elements "
                f"of {spec}, which has no batch dimension: call "
                "`dataset.batch(global_batch_size)` first."
            )


def _check_same_order(dataset):
    """Raises where ranks have different first batches; how many rows it has."""
    digest, rows = hashlib.sha256(), 0
    for element in dataset.take(1):
        rows = int(_rows(element))
        for tensor in tf.nest.flatten(element):
            digest.update(tf.io.serialize_tensor(tensor).numpy())
    communicator = comm.choose("auto", tf.distribute.get_strategy())
    digests = communicator.gather(digest.hexdigest(), "gsnr.shard")
    others = [rank for rank, other in enumerate(digests) if other != digests[0]]
    if others:
        raise ValueError(
            f"The ranks see different data: the first batch of rank(s) {others} is not "
            "that of rank 0, so some examples would be seen twice and others never. "
            "Give `shuffle` a seed and read the same files in the same order."
        )
    return rows


def _join_short_batches(dataset, ranks):
    """Appends each batch of fewer than `ranks` rows to the batch before it, and the
    second to the first, if that has fewer."""
    batches = dataset.map(lambda *batch: (batch, True))
    nothing = tf.nest.map_structure(_no_rows, batches.element_spec[0])
    end = tf.data.Dataset.from_tensors((nothing, False))

    def hold_back(held, element):
        batch, more = element
        short = tf.minimum(_rows(batch), _rows(held)) < ranks
        join = more & short & (_rows(held) > 0)
        joined = tf.nest.map_structure(
            lambda h, b: tf.cond(join, lambda: tf.concat([h, b], 0), lambda: b),
            held,
            batch,
        )
        ready = ~join & (_rows(held) > 0)
        return joined, (held, ready)

    return (
        batches.concatenate(end)
        .scan(nothing, hold_back)
        .filter(lambda _, ready: ready)
        .map(lambda batch, _: batch)
    )


def _no_rows(spec):
    shape = [0, *(size or 0 for size in spec.shape[1:])]
    return tf.zeros(shape, spec.dtype)
