"""Fashion-MNIST: 70,000 grey pictures of clothes, 28 x 28, in ten classes.

Read from Debian's package dataset-fashion-mnist where it is installed; otherwise
Keras downloads it once.
"""

import gzip
from pathlib import Path

import numpy as np

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
VALIDATION = 10_000  # the last of the 60,000 training pictures


def read_idx(path):
    """An array of unsigned bytes from a gzipped IDX file.

    Two zero bytes, the type (8: unsigned bytes), the number of dimensions, their
    sizes as big-endian 32-bit integers, the bytes.
    """
    with gzip.open(path) as file:
        content = file.read()
    if content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no IDX file of bytes. It begins with {content[:4]!r}")
    shape = np.frombuffer(content, ">i4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def read_folder(folder):
    """`((pictures, labels), (pictures, labels))` for training and test."""
    return tuple(
        (
            read_idx(folder / f"{name}-images-idx3-ubyte.gz"),
            read_idx(folder / f"{name}-labels-idx1-ubyte.gz"),
        )
        for name in ("train", "t10k")
    )


def load():
    """Pictures `[n, 28, 28, 1]` and labels `[n]`, bytes: train, validation, test."""
    if DEBIAN.is_dir():
        (train, train_labels), (test, test_labels) = read_folder(DEBIAN)
    else:
        import keras

        (train, train_labels), (test, test_labels) = keras.datasets.fashion_mnist.load_data()
    train, test = train[..., None], test[..., None]
    return (
        (train[:-VALIDATION], train_labels[:-VALIDATION]),
        (train[-VALIDATION:], train_labels[-VALIDATION:]),
        (test, test_labels),
    )
