"""Rows of global batches, divided among those who train together as evenly as they go."""

import tensorflow as tf


def check_batched(dataset, who):
    """Raises where a dataset's elements are no batches of dense tensors.

    Args:
        dataset: `tf.data.Dataset`.
        who: String, who takes the dataset, for the message.
    """
    for spec in tf.nest.flatten(dataset.element_spec):
        if not isinstance(spec, tf.TensorSpec):
            raise TypeError(
                f"{who} takes dense tensors. Received: {spec}. Call {who} before "
                "you make its elements sparse or ragged."
            )
        if spec.shape.rank == 0:
            raise ValueError(
                f"{who} takes a dataset of batches, the global ones. Received elements "
                f"of {spec}, which has no batch dimension: call "
                "`dataset.batch(global_batch_size)` first."
            )


def number_of_rows(batch):
    """Scalar int32 tensor."""
    return tf.shape(tf.nest.flatten(batch)[0])[0]


def part(batch, index, parts):
    """Part `index` of a batch, a structure of tensors. Its size is static if the batch's is.

    Raises:
        tf.errors.InvalidArgumentError: While reading: the batch has fewer rows than parts.
    """
    rows = tf.nest.flatten(batch)[0].shape[0]
    if rows is None:
        rows = number_of_rows(batch)
        enough = tf.debugging.Assert(
            rows >= parts, ["A dataset cannot be shared by", parts, "workers; rows:", rows]
        )
        with tf.control_dependencies([enough]):
            rows = tf.identity(rows)
    own = slice(rows * index // parts, rows * (index + 1) // parts)
    return tf.nest.map_structure(lambda tensor: tensor[own], batch)


def has_short_batches(dataset, parts):
    """Whether a batch may have fewer rows than there are parts."""
    specs = tf.nest.flatten(dataset.element_spec)
    return not all(spec.shape[0] and spec.shape[0] >= parts for spec in specs)


def join_short_batches(dataset, parts):
    """Appends each batch of fewer than `parts` rows to the batch before it, and the
    second to the first, if that has fewer."""
    batches = dataset.map(lambda *batch: (batch, True))
    nothing = tf.nest.map_structure(_no_rows, batches.element_spec[0])
    end = tf.data.Dataset.from_tensors((nothing, False))

    def hold_back(held, element):
        batch, more = element
        short = tf.minimum(number_of_rows(batch), number_of_rows(held)) < parts
        join = more & short & (number_of_rows(held) > 0)
        joined = tf.nest.map_structure(
            lambda h, b: tf.cond(join, lambda: tf.concat([h, b], 0), lambda: b),
            held,
            batch,
        )
        ready = ~join & (number_of_rows(held) > 0)
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
