"""State in shards, which a checkpoint sees variable by variable, whole."""

import zlib

import numpy as np
import tensorflow as tf
from tensorflow.python.checkpoint import tensor_callable


class VariableView(tf.__internal__.tracking.Trackable):
    """Something that is saved and restored as if it were a variable.

    Has `shape`, `dtype`, `numpy()` and `assign(value)`.
    """

    def _serialize_to_tensors(self):
        # Restoring asks for this as well, for the names; only writing for the value.
        # TensorFlow does both from a graph.
        def value():
            return tf.ensure_shape(tf.py_function(self.numpy, [], self.dtype), self.shape)

        saved = tensor_callable.Callable(value, self.dtype, "/device:CPU:0")
        return {"VARIABLE_VALUE": saved}

    def _restore_from_tensors(self, restored):
        tf.py_function(self.assign, [restored["VARIABLE_VALUE"]], [])


class SlotView(VariableView):
    """The slot of one variable, in its whole shape: checkpoints know no shards.

    Args:
        slots: The `PartitionedSlots`.
        slot: Name of the slot.
        index: Of the variable.
        shape, dtype: Of the slot.
    """

    def __init__(self, slots, slot, index, shape, dtype):
        self._slots = slots
        self._slot = slot
        self._index = index
        self.shape = shape
        self.dtype = dtype

    def numpy(self):
        return self._slots.read(self._slot, self._index)

    def assign(self, value):
        self._slots.write(self._slot, self._index, tf.convert_to_tensor(value))


class PartitionedSlots:
    """The slots of a rule where ranks divide them, as one process sees them.

    Until the ranks have met nobody knows which shard is whose. A slot is zeros then, or
    whole what was loaded; afterwards it is read from and written to whoever holds it.

    Args:
        names: The rule's slots.
        layout: The `BucketLayout`.

    Attributes:
        views: For each slot a list of `SlotView`, one for each variable.
        loaded: Arrays by slot and variable, what this rank has loaded, whole, and not
            yet divided.
    """

    def __init__(self, names, layout):
        self._holder = None
        self.loaded = {}
        self.views = {
            slot: [
                SlotView(self, slot, index, shape, layout.dtype)
                for index, shape in enumerate(layout.shapes)
            ]
            for slot in names
        }

    def read(self, slot, index):
        if self._holder is not None:
            return self._holder.read(slot, index)
        return self._whole(slot, index)

    def write(self, slot, index, value):
        self.loaded[slot, index] = value.numpy()
        if self._holder is not None:
            self._holder.write(slot, index, value)

    def held_by(self, holder):
        """Passes everything on to `holder` from now on; `None`: there is none any more."""
        self._holder = holder
        if holder is None:
            self.loaded.clear()

    def place(self, holder, communicator, root):
        """Gives what was loaded to `holder`. All ranks must call it.

        Where they have not all loaded the same, rank `root`'s is what all get.

        Raises:
            ValueError: On all ranks: `root` has not loaded all of it either.
        """
        by_rank = communicator.gather((self._digest(), self._complete()))
        digests = [digest for digest, _ in by_rank]
        if len(set(digests)) > 1:
            if not by_rank[root][1]:
                loaded = [number for number, _ in digests]
                raise ValueError(
                    f"Only some ranks have loaded a checkpoint, and rank {root}, whose "
                    "state all are to have, is not one of them. Received: slots loaded by "
                    f"rank {loaded}. Load it on rank {root}, or on all."
                )
            self._send_all(holder, communicator, root)
        else:
            for (slot, index), value in self.loaded.items():
                holder.write(slot, index, tf.constant(value))
        # Told in messages as the number of updates.
        holder.count_changes_from(0)
        self.loaded.clear()
        self._holder = holder

    def share(self, communicator, root):
        """Gives all ranks what `root` has loaded, where not all have, once there is a
        holder. All ranks must call it."""
        if self._holder is None:
            return
        changes = communicator.gather(self._holder.changes())
        if len(set(changes)) > 1:
            complete = communicator.gather(bool(self.loaded) and self._complete())
            if not complete[root]:
                raise ValueError(
                    f"Only some ranks have loaded a checkpoint, and rank {root}, whose "
                    "state all are to have, is not one of them. Received: updates and "
                    f"loads by rank {changes}. Load it on rank {root}, or on all."
                )
            self._send_all(self._holder, communicator, root)
            self._holder.count_changes_from(max(changes) + 1)
        self.loaded.clear()

    def _send_all(self, holder, communicator, root):
        for slot, index in self._places():
            value = tf.Variable(self._whole(slot, index))
            communicator.broadcast([value], root)
            holder.write(slot, index, tf.convert_to_tensor(value))

    def _places(self):
        return [(slot, view) for slot, views in self.views.items() for view in range(len(views))]

    def _complete(self):
        return not self.loaded or len(self.loaded) == len(self._places())

    def _digest(self):
        """How many slots were loaded, and a checksum of them."""
        total = 0
        for key in sorted(self.loaded):
            total = zlib.crc32(np.ascontiguousarray(self.loaded[key]), total)
        return len(self.loaded), total

    def _whole(self, slot, index):
        view = self.views[slot][index]
        zeros = np.zeros(view.shape, view.dtype.as_numpy_dtype)
        return self.loaded.get((slot, index), zeros)
