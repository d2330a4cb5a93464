"""Starts a benchmark on several ranks and shows what rank 0 prints."""

from gsnr_tf.launch import on_ranks

__all__ = ["on_ranks"]
