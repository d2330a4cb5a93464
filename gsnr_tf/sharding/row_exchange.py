"""Rows of tables on their way: to the ranks that own them, and back.

Rows are dealt cyclically, row i to shard i mod k, so that popular ids, which are often low,
do not pile up. Of a table a rank sends the rows that it has touched, and gets back those
that anyone has.
"""

import tensorflow as tf

from gsnr_tf.comm.base import native
from gsnr_tf.stats.sparse import Rows, merged_sparse


class ShardedRows:
    """The exchange of some tables among ranks.

    Args:
        communicator: The `Communicator`.
        tables: The `Tables`.
        variables: Those of the tables, of the model.
        wire_dtype: Name of the dtype in which gradients travel.
        name: Prefix of the names of collectives.
    """

    def __init__(self, communicator, tables, variables, wire_dtype, name):
        self._comm = communicator
        self._tables = tables
        self._variables = tables.pick(variables)
        self._wire_dtype = tables.dtype if wire_dtype == "float32" else tf.as_dtype(wire_dtype)
        self._name = name

    def scatter(self, moments, weights, compares_workers):
        """Sends what this rank has of each row to the row's owner rank.

        Args:
            moments: `SparseMoments` of this rank.
            weights: For each stage of the exchange those of its ranks.
            compares_workers: Whether the workers of a host are samples of their own.

        Returns:
            `SparseMoments` of all workers, of the rows that this rank owns.
        """
        plan = self._comm.exchange_plan
        ranks = len(plan.owner_ranks)
        for number, (stage, theirs) in enumerate(zip(plan.stages, weights)):
            shards = moments.keys % tf.constant(ranks, moments.keys.dtype)
            place = plan.position(number, shards)
            moments = self._exchanged(moments, place, stage, theirs, number)
            if stage is not plan.stages[-1] and not compares_workers:
                moments = moments._replace(m2=None)
        return moments

    def _exchanged(self, moments, place, stage, weights, number):
        """One stage of `scatter`."""
        name, count = f"{self._name}.{number}", len(stage.ranks)
        rows = tf.range(tf.size(place))
        by_place = tf.dynamic_partition(rows, tf.cast(place, tf.int32), count)
        sizes = tf.stack([tf.size(own) for own in by_place])
        order = tf.concat(by_place, axis=0)
        keys = tf.gather(moments.keys, order)
        means = tf.cast(tf.gather(moments.mean, order), self._wire_dtype)
        packed, sizes_came = self._comm.scatter_rows(
            pack(Rows(keys, means)), sizes, stage, f"{name}.rows"
        )
        came = unpack(packed, self._tables)
        m2s = None
        if moments.m2 is not None:
            # Squares of small gradients are too small for float16.
            own = tf.gather(moments.m2, order)
            m2s, _ = self._comm.scatter_rows(own, sizes, stage, f"{name}.m2")
        group = tf.repeat(tf.range(count), sizes_came)
        return merged_sparse(
            came.keys, tf.cast(came.values, self._tables.dtype), m2s, group, weights
        )

    def read(self, split):
        """The rows as they are, `[rows, width]`."""
        return self._tables.read(self._variables, split)

    def gather(self, keys, theta):
        """Gives all ranks the new rows of all."""
        rows = Rows(keys, tf.cast(theta, self._tables.weights_dtype))
        joined = self._comm.all_gather_rows(pack(rows), f"{self._name}.weights")
        keys, theta = unpack(joined, self._tables)
        split = self._tables.split(keys)
        for position, variable in enumerate(self._variables):
            scatter(variable, self._tables.of_table(position, theta, split))


class ReplicatedRows:
    """The exchange of some tables among workers that all update all of them.

    Args:
        communicator, tables, name: As for `ShardedRows`.
    """

    def __init__(self, communicator, tables, name):
        self._comm = communicator
        self._tables = tables
        self._name = name

    def merged(self, moments, weighted):
        """`SparseMoments` of all workers, on each of them.

        Args:
            moments: `SparseMoments` of this worker.
            weighted: Whether their weight may differ between workers.
        """
        comm = self._comm
        if comm.workers == 1:
            return moments
        rows = comm.all_gather_rows(comm.each(self._packed, moments), f"{self._name}.rows")
        if weighted:
            own = comm.each(lambda m: m.weight[None], moments)
            weights = comm.by_worker(own, f"{self._name}.weight")
            return comm.each(lambda m: self._unpacked(m, rows, weights[:, 0]), moments)
        return comm.each(
            lambda m: self._unpacked(m, rows, tf.repeat(m.weight, comm.workers)), moments
        )

    def _packed(self, moments):
        """Keys, which worker's they are, mean, and m2 if there is one."""
        worker = tf.fill(tf.shape(moments.keys), tf.cast(self._comm.place(), tf.int32))
        values = moments.mean
        if moments.m2 is not None:
            values = tf.concat([values, moments.m2], axis=1)
        return pack(Rows(worker, pack(Rows(moments.keys, values))))

    def _unpacked(self, moments, rows, weights):
        group, rows = _unpacked(rows, tf.int32)
        keys, values = unpack(rows, self._tables)
        m2s = None
        if moments.m2 is not None:
            values, m2s = tf.split(values, 2, axis=1)
        return merged_sparse(keys, values, m2s, group, weights)


def scatter(variable, rows):
    """Gives some rows of a variable new values.

    Args:
        variable: A Keras variable or a `tf.Variable`, or a copy of one on a replica.
        rows: `tf.IndexedSlices`.
    """
    variable = native(variable)
    values = tf.cast(rows.values, variable.dtype)
    variable.scatter_update(tf.IndexedSlices(values, rows.indices))


def pack(rows):
    """`Rows` as one tensor `[rows, columns]`: the bits of the keys before the values."""
    keys, dtype = rows.keys, rows.values.dtype
    if keys.dtype.size < dtype.size:
        keys = tf.cast(keys, tf.int64)
    bits = tf.bitcast(keys, dtype)
    return tf.concat(
        [tf.reshape(bits, [tf.size(keys), _columns(keys.dtype, dtype)]), rows.values], 1
    )


def unpack(packed, tables):
    """The `Rows` of what `pack` made of some tables' rows."""
    return Rows(*_unpacked(packed, tables.key_dtype))


def _unpacked(packed, key_dtype):
    dtype = packed.dtype
    wire_dtype = key_dtype if key_dtype.size >= dtype.size else tf.int64
    columns = _columns(wire_dtype, dtype)
    bits, values = packed[:, :columns], packed[:, columns:]
    keys = tf.bitcast(bits if columns > 1 else bits[:, 0], wire_dtype)
    return tf.cast(keys, key_dtype), values


def _columns(key_dtype, dtype):
    return max(1, key_dtype.size // dtype.size)
