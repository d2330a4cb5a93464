"""Recommendation: which MovieLens ratings are 4 stars or more, by a small DLRM.

    python keras_examples/movielens_task.py --batch-size 4000
    gsnr-tf compare keras_examples/movielens_task.py --batch 4000,16000

movielens_dlrm.py trains the same model with more to see.
"""

import keras
import movielens
import train
from click_task import ClickTask
from keras import layers

from gsnr_tf.compare import Data, Split


def build_model(data, width=16, l2=0.0):
    """DLRM: one vector per feature, their pairwise dot products, an MLP on top.

    `l2` is the coefficient λ of the gradient: each update sees λθ added to the gradient
    of the two tables, on all their rows. Keras' L2(c) adds c·Σθ² to the loss, so c = λ/2.
    """
    user = keras.Input((), name="user", dtype="int32")
    movie = keras.Input((), name="movie", dtype="int32")
    genres = keras.Input((data.genres,), name="genres")  # rows sum to 1: a mean of embeddings
    year = keras.Input((1,), name="year")

    def table(rows, name):
        decay = keras.regularizers.L2(l2 / 2) if l2 else None
        return layers.Embedding(rows, width, embeddings_regularizer=decay, name=name)

    bottom = layers.Dense(width, activation="relu")(year)
    bottom = layers.Dense(width, activation="relu")(bottom)
    vectors = keras.ops.stack(
        [
            table(data.users, "user_embedding")(user),
            table(data.movies, "movie_embedding")(movie),
            layers.Dense(width, use_bias=False, name="genre_embedding")(genres),
            bottom,
        ],
        axis=1,
    )
    products = keras.ops.matmul(vectors, keras.ops.transpose(vectors, (0, 2, 1)))
    pairs = [products[:, i, j] for i in range(4) for j in range(i)]
    top = keras.ops.concatenate([bottom, keras.ops.stack(pairs, axis=1)], axis=1)
    for units in (64, 32):
        top = layers.Dense(units, activation="relu")(top)
    click = layers.Dense(1, activation="sigmoid", name="click")(top)
    return keras.Model([user, movie, genres, year], click)


class MovieLensDLRM(ClickTask):
    """10 epochs of 80,000 ratings."""

    target = 0.76
    epochs = 10
    learning_rates = {
        **dict.fromkeys(("adam", "adamw", "nadam", "lamb", "muon"), 0.05),
        **dict.fromkeys(("momentum", "nesterov"), 3.0),
    }
    # Without it, the base lacks more than any form of GSNR gives.
    regularizer, regularizers = "l2", (0.001, 0.003, 0.01, 0.03)
    group = "user"
    l2_pattern = "(user|movie)_embedding"
    sizes = {"default": {"width": 16}, "large": {"width": 64}}

    def load(self):
        self._movielens = movielens.load(self.split)
        parts = [getattr(self._movielens, name) for name in Data._fields]
        return Data(*(Split(part.features, part.clicks) for part in parts))

    def build_model(self, l2=0.0):
        return build_model(self._movielens, self.width, l2)


if __name__ == "__main__":
    train.main([MovieLensDLRM])
