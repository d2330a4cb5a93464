"""Each replica's rows of every global batch."""

import functools

import tensorflow as tf

from gsnr_tf.data import rows


def distributed(dataset, strategy):
    """Gives each replica of a strategy its rows of a dataset of global batches.

    The batches, and who gets which rows, are those of `gsnr_tf.shard`, with replicas for
    ranks. TensorFlow's own way leaves the last replicas of a short batch without a row,
    whose loss is not a number, and shares out files in place of rows where it finds some.

    Args:
        dataset: `tf.data.Dataset`, the same on all workers.
        strategy: `tf.distribute.Strategy`.

    Returns:
        A distributed dataset.

    Raises:
        ValueError: An element has no batch dimension.
        TypeError: An element is a sparse or ragged tensor.
    """
    rows.check_batched(dataset, "fit_in_strategy")
    replicas = strategy.num_replicas_in_sync
    if rows.has_short_batches(dataset, replicas):
        dataset = rows.join_short_batches(dataset, replicas)

    def of_worker(context):
        """What the replicas of a worker take in turn: their parts of each batch."""
        here = replicas // context.num_input_pipelines
        first = context.input_pipeline_id * here

        def parts(*batch):
            own = [rows.part(batch, first + index, replicas) for index in range(here)]
            of_each = map(tf.data.Dataset.from_tensors, own)
            return functools.reduce(tf.data.Dataset.concatenate, of_each)

        return dataset.flat_map(parts).prefetch(2 * here)

    return strategy.distribute_datasets_from_function(of_worker)
