"""Lookups that cost the rows that are looked up, not the rows there are."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("gsnr_tf")
class Embedding(keras.layers.Embedding):
    """`keras.layers.Embedding` that reads rows of its table, and never the table.

    Keras takes rows out of the table as a tensor. TensorFlow makes that tensor by copying
    the table at each step, once an update has changed single rows of it: at 10 million rows
    of 16 the copy takes seven times as long as lookup and update. Takes the arguments of
    `keras.layers.Embedding`, and saves the same weights.

    With LoRA or quantized, which make a table out of others, it reads as Keras does.
    """

    def call(self, inputs):
        """Rows of the table.

        Args:
            inputs: Integer tensor of any shape, dense, ragged or sparse. Negative numbers
                count from the end, as in Keras.

        Returns:
            Tensor of one dimension more, in the layer's compute dtype.
        """
        made_of_others = self.lora_enabled or self.quantization_mode
        # Not `value`: under mixed precision that is a copy, cast. `None` while shapes are
        # inferred, before there is a variable.
        table = None if made_of_others else self._embeddings._value
        if table is None:
            return super().call(inputs)
        if inputs.dtype not in ("int32", "int64"):
            inputs = keras.ops.cast(inputs, "int32")
        return keras.ops.cast(_rows(table, inputs, self.input_dim), self.compute_dtype)


def _rows(table, ids, number):
    if isinstance(ids, tf.RaggedTensor):
        return ids.with_flat_values(_rows(table, ids.flat_values, number))
    if isinstance(ids, tf.SparseTensor):
        values = _from_the_end(ids.values, number)
        each = tf.sparse.expand_dims(tf.SparseTensor(ids.indices, values, ids.dense_shape), -1)
        rows = tf.nn.safe_embedding_lookup_sparse(table, each, default_id=0)
        return tf.ensure_shape(rows, [*ids.shape, table.shape[1]])
    return tf.gather(table, _from_the_end(tf.convert_to_tensor(ids), number))


def _from_the_end(ids, number):
    return tf.where(ids < 0, ids + tf.cast(number, ids.dtype), ids)


def read_rows(model):
    """Lets all embeddings of a model read rows only; see `Embedding`.

    Changes each `keras.layers.Embedding` where it is, whether it is built or not, and leaves
    subclasses of other people's as they are. To be called before `compile`.

    Args:
        model: A `keras.Model`, or a layer.

    Returns:
        The model.
    """
    for layer in model._flatten_layers():
        if type(layer) is keras.layers.Embedding:
            layer.__class__ = Embedding
    return model
