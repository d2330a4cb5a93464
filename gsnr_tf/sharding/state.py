"""A slot of the rule in slices, which a checkpoint sees whole, variable by variable."""

import tensorflow as tf

from gsnr_tf.sharding.layout import BLOCK


class SliceState:
    """One slot: the rank's own slice of it, and a view for each variable.

    Attributes:
        slice: `tf.Variable` `[own blocks, BLOCK]`.
    """

    def __init__(self, name, communicator, layout):
        self.name = name
        self._comm = communicator
        self._layout = layout
        self._first, self._last = communicator.own_rows(len(layout.owner))
        with tf.init_scope():
            shape = [self._last - self._first, BLOCK]
            zeros = tf.zeros(shape, layout.dtype)
            self.slice = tf.Variable(zeros, trainable=False, name=f"{name}_slice")

    def _own(self, index):
        """The part of variable `index` in the slice: where in each, from and to."""
        start, size = self._layout.span(index)
        low = min(max(self._first * BLOCK - start, 0), size)
        high = min(max(self._last * BLOCK - start, low), size)
        return low, high, start + low - self._first * BLOCK

    def read(self, index):
        """The slot of a variable, whole. All ranks must call it."""
        low, high, at = self._own(index)
        flat = tf.reshape(self.slice, [-1])
        part = flat[at : at + high - low] if high > low else flat[:0]
        whole = self._comm.from_owners(part, f"gsnr.state.{self.name}.{index}")
        return tf.reshape(whole, self._layout.shape(index))

    def write(self, index, value):
        """Takes the own part of a variable's slot."""
        low, high, at = self._own(index)
        if high > low:
            flat = tf.reshape(self.slice, [-1])
            part = tf.cast(tf.reshape(value, [-1])[low:high], flat.dtype)
            flat = tf.concat([flat[:at], part, flat[at + high - low :]], axis=0)
            self.slice.assign(tf.reshape(flat, self.slice.shape))


class SlotView(tf.__internal__.tracking.Trackable):
    """The slot of one variable, as if it were a variable of its own.

    Saved and restored it has its whole shape, so that checkpoints know nothing of
    ranks and slices. Saving gathers it: all ranks must save, one may write.
    """

    def __init__(self, state, index):
        self._state = state
        self._index = index

    @property
    def shape(self):
        return self._state._layout.shape(self._index)

    @property
    def dtype(self):
        return self._state._layout.dtype

    def numpy(self):
        return self._state.read(self._index).numpy()

    def assign(self, value):
        self._state.write(self._index, tf.convert_to_tensor(value))

    def _serialize_to_tensors(self):
        return {"VARIABLE_VALUE": self._state.read(self._index)}

    def _restore_from_tensors(self, restored):
        self.assign(restored["VARIABLE_VALUE"])
