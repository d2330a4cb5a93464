"""Each rank's rows of every global batch."""

import hashlib

import tensorflow as tf

from gsnr_tf import comm
from gsnr_tf.data import rows
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
    rows.check_batched(dataset, "shard")
    # In a single process as well: to read a batch moves a seeded `shuffle` on to its
    # next order, which must be the same for any number of ranks.
    first = _check_same_order(dataset)
    if ranks == 1:
        return dataset
    if rows.has_short_batches(dataset, ranks):
        number = joined_batches(dataset, ranks, first)
        dataset = rows.join_short_batches(dataset, ranks)
        if number is not None:
            dataset = dataset.apply(tf.data.experimental.assert_cardinality(number))

    def rows_of_rank(*batch):
        own = rows.part(batch, rank, ranks)
        return own if len(own) > 1 else own[0]

    return dataset.map(rows_of_rank, num_parallel_calls=tf.data.AUTOTUNE)


def _check_same_order(dataset):
    """Raises where ranks have different first batches; how many rows it has."""
    digest, number = hashlib.sha256(), 0
    for element in dataset.take(1):
        number = int(rows.number_of_rows(element))
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
    return number
