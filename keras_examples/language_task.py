"""Language: byte-level transformers on the text of Python's standard library.

python keras_examples/language_task.py CausalBytes --batch-size 256
python keras_examples/language_task.py MaskedBytes --size large
gsnr-tf compare keras_examples/language_task.py:CausalBytes --batch 256,1024
"""

import keras
import python_source
import train
from keras import layers

from gsnr_tf.compare import Data, Split, Task

SCORED = 500  # windows; to score all of them would take longer than the training


class Bytes(Task):
    """What both models share: the text, the layers, the loss in nats a byte."""

    metric = "loss (nats a byte)"
    tokens, causal = 256, False
    learning_rates = {"adam": 0.005, "lamb": 0.02}
    regularizer, regularizers = "weight_decay", (0.0, 0.01, 0.1)
    resplit = False  # the splits are of different files
    sizes = {
        "small": {
            "width": 32,
            "depth": 1,
            "length": 32,
            "epochs": 0.1,
            "target": None,
            "learning_rates": {"adam": 0.02, "lamb": 0.06},
        },
        "default": {"width": 48, "depth": 2, "length": 64, "epochs": 0.25},
        "large": {"width": 256, "depth": 6, "length": 256, "epochs": 3},
    }
    # -1 asks nothing.
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)

    def windows(self, length):
        """Windows of the three splits, of the last two as many as are scored."""
        training, *others = [python_source.windows(t, length) for t in python_source.load()]
        return training, *(python_source.spread(pieces, SCORED) for pieces in others)

    def build_model(self):
        shown = keras.Input((self.length,), dtype="int32")
        places = layers.Embedding(self.length, self.width)(keras.ops.arange(self.length))
        x = layers.Embedding(self.tokens, self.width)(shown) + places
        for _ in range(self.depth):
            x = self.block(x)
        x = layers.LayerNormalization()(x)
        return keras.Model(shown, layers.Dense(256)(x))

    def block(self, x):
        """Attention and a dense layer of four times the width, each normalized before."""
        normal = layers.LayerNormalization()(x)
        attention = layers.MultiHeadAttention(4, self.width // 4)
        x = x + attention(normal, normal, use_causal_mask=self.causal)
        inner = layers.Dense(4 * self.width, activation="relu")(layers.LayerNormalization()(x))
        return x + layers.Dense(self.width)(inner)


class CausalBytes(Bytes):
    """Each byte from those before it."""

    causal, target = True, 2.5

    def load(self):
        def pairs(pieces):
            return Split(pieces[:, :-1].astype("int32"), pieces[:, 1:].astype("int32"))

        return Data(*map(pairs, self.windows(self.length + 1)))


class MaskedBytes(Bytes):
    """BERT's task: bytes that were hidden, from those on both sides."""

    tokens, target = 257, 3.08

    def load(self):
        splits = enumerate(self.windows(self.length))
        return Data(*(Split(*python_source.masked(pieces, seed)) for seed, pieces in splits))


if __name__ == "__main__":
    train.main([CausalBytes, MaskedBytes])
