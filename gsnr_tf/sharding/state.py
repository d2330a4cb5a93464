"""State that lies in buckets, which a checkpoint sees variable by variable, whole."""

import zlib

import numpy as np
import tensorflow as tf
from tensorflow.python.checkpoint import tensor_callable


class SliceState:
    """One slot of the rule: of each bucket the rank's own part.

    Args:
        name: Of the slot.
        layout: The `Layout`.
        parts: The rank's `Part` of each bucket.

    Attributes:
        parts: For each bucket a `tf.Variable` of the part's shape.
    """

    def __init__(self, name, layout, parts):
        self._layout = layout
        self._ranges = [(part.start, part.stop) for part in parts]
        with tf.init_scope():
            self.parts = [
                tf.Variable(
                    tf.zeros(part.shape, layout.dtype), trainable=False, name=f"{name}_slice"
                )
                for part in parts
            ]

    def _own(self, index):
        """Where variable `index` and the own part meet.

        Returns the bucket's number, a slice of the variable's elements and the same
        as a slice of the part's.
        """
        number, place = self._layout.places[index]
        first, size = self._layout.buckets[number].span(place)
        start, stop = self._ranges[number]
        low = min(max(start - first, 0), size)
        high = min(max(stop - first, low), size)
        offset = first - start
        return number, slice(low, high), slice(offset + low, offset + high)

    def own(self, index):
        """What this rank has of a variable's slot: a flat array."""
        number, _, there = self._own(index)
        return self.parts[number].numpy().reshape(-1)[there]

    def write(self, index, value):
        """Takes the own part of a variable's slot."""
        number, here, there = self._own(index)
        if here.start < here.stop:
            part = self.parts[number]
            flat = part.numpy().reshape(-1)
            flat[there] = tf.cast(tf.reshape(value, [-1])[here], part.dtype)
            part.assign(flat.reshape(part.shape))


class Share:
    """What a rank holds of the slots, for other ranks to read: see `comm.peers`.

    Knows no optimizer, so that it can outlive it: another rank may save when this one has
    nothing left to do.

    Args:
        state: Dict of `SliceState` by slot.
    """

    def __init__(self, state):
        self._state = state
        # On the CPU: it is read from other threads, which must not wait for a device.
        with tf.init_scope(), tf.device("CPU:0"):
            self.count = tf.Variable(0, dtype=tf.int64, trainable=False)

    def changes(self):
        """How often this rank's share has changed: by updates, skipped ones included,
        and by loading."""
        return int(self.count.numpy())

    def own(self, what):
        """The bytes that this rank has of "slot/index of the variable"."""
        slot, index = what.rsplit("/", 1)
        return self._state[slot].own(int(index)).tobytes()


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
    """The slot of one variable, in its whole shape: checkpoints know no slices.

    Args:
        slots: The `Slots`.
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


class Slots:
    """The slots of a rule where ranks share them out, as one process sees them.

    Until the ranks have met nobody knows which part is whose. A slot is zeros then, or
    whole what was loaded; afterwards it is read from and written to whoever holds it.

    Args:
        names: The rule's slots.
        layout: The `Layout`.

    Attributes:
        views: For each slot a list of `SlotView`, one for each variable.
        loaded: Arrays by slot and variable, what this rank has loaded, whole, and not
            yet shared out.
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
