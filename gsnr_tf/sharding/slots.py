"""Who holds the slots of a rule, the state that is as large as the variables."""

import numpy as np
import tensorflow as tf

from gsnr_tf.sharding.shard import Shard


class ReplicatedSlots:
    """Slots that every worker has whole.

    Args:
        by_name: For each slot of the rule a list of variables, one for each variable of
            the model.
        layout: The `BucketLayout`.
    """

    # Loads are told by what is loaded: all state is in variables.
    count = 0

    def __init__(self, by_name, layout):
        self.by_name = by_name
        self._layout = layout

    @property
    def bytes(self):
        """Bytes of state on this worker."""
        return len(self.by_name) * self._layout.size * self._layout.dtype.size

    def changes(self):
        """See `ShardedSlots`."""
        return 0

    def count_changes_from(self, number):
        """See `ShardedSlots`."""

    def end_update(self):
        """See `ShardedSlots`."""

    def read(self, slot, index):
        """A slot of a variable, an array."""
        return self.by_name[slot][index].numpy()

    def write(self, slot, index, value):
        """Takes a slot of a variable."""
        self.by_name[slot][index].assign(value)

    def of_bucket(self, bucket):
        """Within a step: dict of lists of tensors, one for each variable of a bucket."""
        return {
            name: [tf.convert_to_tensor(slot) for slot in bucket.pick(slots)]
            for name, slots in self.by_name.items()
        }

    def read_rows(self, tables, split):
        """Within a step: the slots of rows side by side; see `Tables.read`."""
        parts = [tables.read(tables.pick(slots), split) for slots in self.by_name.values()]
        return tf.concat(parts, axis=1) if parts else tables.no_slots(split)

    def of_shard(self, number):
        """Within a step: dict of tensors in the shape of a bucket's only shard."""
        bucket = self._layout.buckets[number]
        shard = Shard.whole(bucket)
        return {name: shard.cut(slots) for name, slots in self.of_bucket(bucket).items()}


class ShardedSlots:
    """Slots of which this rank has its shards. All ranks must make it at one point.

    Args:
        names: Names of the slots.
        layout: The `BucketLayout`.
        shards: The rank's `Shard` of each bucket.
        communicator: The `Communicator`.
    """

    def __init__(self, names, layout, shards, communicator):
        self.names = names
        self._layout = layout
        self._comm = communicator
        self._elements = sum(shard.size for shard in shards)
        place = communicator.exchange_plan.shard, communicator.workers
        self._elements += sum(t.owned(*place) * t.width for t in layout.tables)
        with tf.init_scope():
            self._rows = [
                tf.Variable(
                    tf.zeros([t.owned(*place), len(names) * t.width], layout.dtype),
                    trainable=False,
                    name="slots_of_rows",
                )
                for t in layout.tables
            ]
        self._state = {
            name: ShardState(name, layout, shards, self._rows, number, place)
            for number, name in enumerate(names)
        }
        self._served = ServedState(self._state)
        self._peers = communicator.peers(self._served)

    @property
    def bytes(self):
        """Bytes of state on this rank."""
        return len(self.names) * self._elements * self._layout.dtype.size

    def changes(self):
        """See `ServedState.changes`."""
        return self._served.changes()

    def count_changes_from(self, number):
        """Makes `changes()` the same on ranks that have the same state again."""
        self._served.count.assign(number)

    @property
    def count(self):
        """`changes()` as a tensor, within a step."""
        return tf.convert_to_tensor(self._served.count)

    def end_update(self):
        """Within a step, after all else."""
        self._served.count.assign_add(1)

    def read(self, slot, index):
        """The slot of a variable, whole, as it is after this rank's last change."""
        by_rank = self._peers.collect(f"{slot}/{index}")
        owners, dtype = self._comm.exchange_plan.owner_ranks, self._layout.dtype.as_numpy_dtype
        parts = [np.frombuffer(by_rank[rank], dtype) for rank in owners]
        shape = self._layout.shapes[index]
        number, position = self._layout.index_map[index]
        part = self._layout.parts[number]
        if not self._layout.is_table[index]:
            return np.concatenate(parts).reshape(shape)
        whole = np.empty([shape[0], part.width], dtype)
        for shard, own in enumerate(parts):
            rows = part.own_rows(position, shard, len(owners))
            whole[rows] = own.reshape(-1, part.width)
        return whole.reshape(shape)

    def write(self, slot, index, value):
        """Takes the own shard of the slot of a variable."""
        self._state[slot].write(index, value)
        self._served.count.assign_add(1)

    def of_shard(self, number):
        """Within a step: dict of `tf.Variable`s of this rank's shard of a bucket."""
        return {name: state.of_shard[number] for name, state in self._state.items()}

    def read_rows(self, number, keys):
        """Within a step: the slots of own rows of some tables, side by side."""
        return tf.gather(self._rows[number], keys // tf.constant(self._comm.workers, keys.dtype))

    def write_rows(self, number, keys, values):
        """Within a step: takes what `read_rows` gives."""
        places = keys // tf.constant(self._comm.workers, keys.dtype)
        self._rows[number].scatter_update(tf.IndexedSlices(values, places))


class ShardState:
    """One slot of the rule: of each bucket, and of all tables, the rank's own shard.

    Args:
        name: Of the slot.
        layout: The `BucketLayout`.
        shards: The rank's `Shard` of each bucket.
        rows: For each of the layout's tables a `tf.Variable` `[own rows, slots × width]`.
        number: Which of the slots it is.
        place: Which shard it is, of how many.

    Attributes:
        of_shard: For each bucket a `tf.Variable` of the shard's shape.
    """

    def __init__(self, name, layout, shards, rows, number, place):
        self._layout = layout
        self._rows = rows
        self._number = number
        self._place = place
        self._ranges = [(shard.start, shard.stop) for shard in shards]
        with tf.init_scope():
            self.of_shard = [
                tf.Variable(
                    tf.zeros(shard.shape, layout.dtype), trainable=False, name=f"{name}_shard"
                )
                for shard in shards
            ]

    def _own(self, index):
        """Where variable `index` and the own shard overlap.

        Returns the bucket's number, a slice of the variable's elements and the same
        as a slice of the shard's.
        """
        number, position = self._layout.index_map[index]
        first, size = self._layout.buckets[number].span(position)
        start, stop = self._ranges[number]
        low = min(max(start - first, 0), size)
        high = min(max(stop - first, low), size)
        offset = first - start
        return number, slice(low, high), slice(offset + low, offset + high)

    def _own_rows(self, index):
        """Of a table: the slots of its group, which of its rows are the own, where those are
        among the slots, and which columns are this slot's."""
        number, position = self._layout.index_map[index]
        number -= len(self._layout.buckets)
        tables = self._layout.tables[number]
        rows = tables.own_rows(position, *self._place)
        places = tf.range(*tables.own_range(position, *self._place))
        first = self._number * tables.width
        return self._rows[number], rows, places, slice(first, first + tables.width)

    def own(self, index):
        """What this rank has of a variable's slot: a flat array."""
        if self._layout.is_table[index]:
            slots, _, places, columns = self._own_rows(index)
            return tf.gather(slots, places).numpy()[:, columns].reshape(-1)
        number, _, there = self._own(index)
        return self.of_shard[number].numpy().reshape(-1)[there]

    def write(self, index, value):
        """Takes the own shard of a variable's slot."""
        if self._layout.is_table[index]:
            slots, rows, places, columns = self._own_rows(index)
            values = tf.gather(slots, places).numpy()
            values[:, columns] = tf.reshape(value, [value.shape[0], -1])[rows]
            slots.scatter_update(tf.IndexedSlices(values, places))
            return
        number, here, there = self._own(index)
        if here.start < here.stop:
            shard = self.of_shard[number]
            flat = shard.numpy().reshape(-1)
            flat[there] = tf.cast(tf.reshape(value, [-1])[here], shard.dtype)
            shard.assign(flat.reshape(shard.shape))


class ServedState:
    """What a rank holds of the slots, for other ranks to read: see `comm.peers`.

    Knows no optimizer, so that it can outlive it: another rank may save when this one has
    nothing left to do.

    Args:
        state: Dict of `ShardState` by slot.
    """

    def __init__(self, state):
        self._state = state
        # On the CPU: it is read from other threads, which must not wait for a device.
        with tf.init_scope(), tf.device("CPU:0"):
            self.count = tf.Variable(0, dtype=tf.int64, trainable=False)

    def changes(self):
        """How often this rank's shards have changed: by updates, skipped ones included,
        and by loading."""
        return int(self.count.numpy())

    def own(self, what):
        """The bytes that this rank has of "slot/index of the variable"."""
        slot, index = what.rsplit("/", 1)
        return self._state[slot].own(int(index)).tobytes()
