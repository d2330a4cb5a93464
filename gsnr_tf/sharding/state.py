"""State that lies in buckets, which a checkpoint sees variable by variable, whole."""

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

    def shape(self, index):
        number, place = self._layout.places[index]
        return self._layout.buckets[number].shapes[place]

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
        slices: The `Slices`.
        slot: Name of the slot.
        index: Of the variable.
        shape, dtype: Of the slot.
    """

    def __init__(self, slices, slot, index, shape, dtype):
        self._slices = slices
        self._slot = slot
        self._index = index
        self.shape = shape
        self.dtype = dtype

    def numpy(self):
        return self._slices.read(self._slot, self._index)

    def assign(self, value):
        self._slices.write(self._slot, self._index, tf.convert_to_tensor(value))
