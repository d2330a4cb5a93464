"""Layers that read of their weights what a batch needs."""

from gsnr_tf.layers.embedding import Embedding, read_rows

__all__ = ["Embedding", "read_rows"]
