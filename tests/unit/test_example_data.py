"""The readers of the examples' data."""

import gzip
import sys

import numpy as np
import pytest

from tests.processes import ROOT

sys.path.insert(0, str(ROOT / "keras_examples"))

import fashion_mnist
import python_source


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes()))


def test_idx_files_are_read(tmp_path):
    rng = np.random.default_rng(0)
    written = {}
    for name, rows in (("train", 7), ("t10k", 3)):
        pictures = rng.integers(0, 256, (rows, 4, 5), dtype=np.uint8)
        labels = rng.integers(0, 10, rows, dtype=np.uint8)
        write_idx(tmp_path / f"{name}-images-idx3-ubyte.gz", pictures)
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte.gz", labels)
        written[name] = pictures, labels
    for name, found in zip(written, fashion_mnist.read_folder(tmp_path), strict=True):
        for array, expected in zip(found, written[name], strict=True):
            np.testing.assert_array_equal(array, expected)


def test_another_file_is_no_idx_file(tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"\x89PNG and more"))
    with pytest.raises(ValueError, match="no IDX file of bytes"):
        fashion_mnist.read_idx(tmp_path / "x.gz")


@pytest.mark.skipif(not fashion_mnist.DEBIAN.is_dir(), reason="no dataset-fashion-mnist")
def test_fashion_mnist_is_split_as_said():
    splits = fashion_mnist.load()
    assert [pictures.shape for pictures, _ in splits] == [
        (50_000, 28, 28, 1), (10_000, 28, 28, 1), (10_000, 28, 28, 1),
    ]  # fmt: skip
    for pictures, labels in splits:
        assert pictures.dtype == np.uint8
        assert len(labels) == len(pictures)
        # Each class has about a tenth.
        assert np.bincount(labels, minlength=10).min() > 0.08 * len(labels)


@pytest.fixture
def library(tmp_path):
    """A library whose every file says its own number, over and over."""
    for number in range(300):
        folder = tmp_path / f"package{number % 7}"
        folder.mkdir(exist_ok=True)
        (folder / f"m{number}.py").write_text(f"<{number}>" * 1000)
    for hidden in ("site-packages", "test"):
        (tmp_path / hidden).mkdir()
        (tmp_path / hidden / "x.py").write_text("<hidden>" * 1000)
    return tmp_path


def test_no_file_of_the_library_is_in_two_splits(library):
    splits = [text.tobytes().decode() for text in python_source.load(library)]
    numbers = [set(text.strip("<>").split("><")) for text in splits]
    assert sum(map(len, numbers)) == 300 == len(set.union(*numbers))
    assert "hidden" not in set.union(*numbers)
    train, validation, test = map(len, numbers)
    assert 210 < train < 270 and 12 < validation < 50 and 12 < test < 50
    assert [len(text) for text in python_source.load(library)] == [len(t) for t in splits]


def test_a_library_that_is_not_there_is_told(tmp_path):
    with pytest.raises(SystemExit, match="0 bytes of Python source"):
        python_source.load(tmp_path)


def test_windows_cut_the_text_and_drop_the_rest():
    text = np.arange(11, dtype=np.uint8)
    np.testing.assert_array_equal(python_source.windows(text, 4), [[0, 1, 2, 3], [4, 5, 6, 7]])


def test_scored_windows_come_from_all_over_the_text():
    pieces = np.arange(101)[:, None]
    np.testing.assert_array_equal(python_source.spread(pieces, 5)[:, 0], [0, 25, 50, 75, 100])


def test_masks_are_those_of_bert():
    pieces = np.random.default_rng(0).integers(0, 256, (2000, 64), dtype=np.uint8)
    shown, asked = python_source.masked(pieces, seed=1)
    chosen = asked >= 0
    np.testing.assert_array_equal(asked[chosen], pieces[chosen])
    np.testing.assert_array_equal(shown[~chosen], pieces[~chosen])
    n = chosen.size
    assert abs(chosen.mean() - 0.15) < 5 * np.sqrt(0.15 * 0.85 / n)
    hidden = (shown[chosen] == 256).mean()
    kept = (shown[chosen] == asked[chosen]).mean()
    error = 5 * np.sqrt(0.25 / chosen.sum())
    assert abs(hidden - 0.8) < error
    assert abs(kept - (0.1 + 0.1 / 256)) < error
    assert shown.max() == 256 and shown[shown < 256].max() <= 255
    again = python_source.masked(pieces, seed=1)
    np.testing.assert_array_equal(again[0], shown)
    assert (python_source.masked(pieces, seed=2)[1] != asked).any()
