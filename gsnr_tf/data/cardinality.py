"""How many batches a dataset has once short ones have joined others, without reading it."""

import tensorflow as tf

# TensorFlow's own names: of what makes batches, and of what passes them on one by one.
_BATCHING = ("_BatchDataset", "_ParallelBatchDataset", "_PaddedBatchDataset")
_ONE_TO_ONE = (
    *("_MapDataset", "_ParallelMapDataset", "_PrefetchDataset", "_ShuffleDataset"),
    *("CacheDataset", "_OptionsDataset"),
)


def joined_batches(dataset, ranks, first):
    """Number of batches once one of fewer than `ranks` rows has joined another.

    Args:
        dataset: `tf.data.Dataset` of batches.
        ranks: Int.
        first: Int, rows of its first batch.

    Returns:
        Int, `tf.data.INFINITE_CARDINALITY`, or `None` where only reading could tell: an
        unknown number of examples (a generator, a filter, files of records), or batches
        that were not made by `batch` or `padded_batch`, a mere `map`, `prefetch`,
        `cache` or `shuffle` ago.
    """
    number = int(dataset.cardinality())
    if number == tf.data.INFINITE_CARDINALITY:
        return number
    found = _examples_and_batch(dataset)
    if number < 0 or found is None:
        return None
    examples, batch = found
    rest = examples % batch
    # Else a `map` has made other batches of them.
    as_made = number == -(-examples // batch) and first in (min(batch, examples), rest)
    if not as_made or batch < ranks:
        return None
    return number - 1 if number > 1 and 0 < rest < ranks else number


def _examples_and_batch(dataset):
    """Number of examples and of rows in a full batch, or `None`."""
    while type(dataset).__name__ in _ONE_TO_ONE:
        (dataset,) = dataset._inputs()
    if type(dataset).__name__ not in _BATCHING:
        return None
    (examples,) = dataset._inputs()
    number = int(examples.cardinality())
    return (number, int(dataset._batch_size)) if number > 0 else None
