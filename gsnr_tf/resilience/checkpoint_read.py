"""Checkpoints read, after every byte was found to be as it was written.

Checkpoints of format 1, whose arrays are in state.h5, are still read.
"""

import contextlib
import hashlib
import json

from gsnr_tf.resilience import array_file
from gsnr_tf.resilience.array_file import Array
from gsnr_tf.resilience.checkpoint_files import (
    FILES,
    FORMAT,
    MANIFEST,
    RANKS,
    STATE,
    SUMS,
    CheckpointError,
    sums_text,
)


class Stored:
    """A checkpoint that was found whole, with its arrays still on disk.

    Attributes:
        path: `pathlib.Path`.
        about: Dict of manifest.json.
        ranks: List of what ranks.json holds.
        arrays: Dict of lists of `Array`, by group.
        digest: String, alike for alike checkpoints alone.
    """

    def __init__(self, path, about, ranks, arrays, digest, file):
        self.path = path
        self.about = about
        self.ranks = ranks
        self.arrays = arrays
        self.digest = digest
        self._file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._file.close()


def read(path):
    """`Stored`, after checking that every byte is as it was written. To be closed.

    Raises:
        CheckpointError: Something is missing or damaged, and what.
    """
    try:
        if not (path / SUMS).exists():
            return _read_older(path)
        with contextlib.ExitStack() as stack:
            files = {name: _open(path, name) for name in FILES[:3]}
            for file in files.values():
                stack.callback(file.close)
            sums = {name: _digest(file) for name, file in files.items()}
            _check_sums(path, sums)
            about = json.loads(files[MANIFEST].read())
            _check_format(path, about)
            ranks = json.loads(files[RANKS].read())
            arrays = _by_group(array_file.read(files[STATE]), about["arrays"])
            stack.pop_all()
        for name in (MANIFEST, RANKS):
            files[name].close()
        digest = hashlib.sha256(sums_text(sums)).hexdigest()
        return Stored(path, about, ranks, arrays, digest, files[STATE])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}") from error


def _by_group(arrays, names):
    by_name = {array.name: array for array in arrays}
    return {group: [by_name[name] for name in each] for group, each in names.items()}


def _check_sums(path, sums):
    """Compares with SHA256SUMS to the byte, so that nothing in it may differ either."""
    expected = (path / SUMS).read_bytes()
    if expected == sums_text(sums):
        return
    lines = expected.split(b"\n")
    differing = [
        f"{path}/{name}"
        for name, digest in sums.items()
        if f"{digest}  {name}".encode() not in lines
    ]
    raise CheckpointError(
        f"{' or '.join([*differing, f'{path}/{SUMS}'])} is damaged: one does not fit the"
        " other. Load another tag."
    )


def _check_format(path, about):
    if about["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has the format {about['format']!r}; this version reads 1 and {FORMAT}."
        )


def _open(path, name):
    try:
        return open(path / name, "rb")
    except FileNotFoundError:
        raise CheckpointError(f"{path}/{name} is missing.") from None


def _digest(file):
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    file.seek(0)
    return digest.hexdigest()


# ---- format 1
# --------------------------------------------------------------------------


def _read_older(path):
    """A checkpoint of format 1, whose manifest has no digest of its own."""
    with _open(path, MANIFEST) as file:
        content = file.read()
    try:
        about = json.loads(content)
        version = about["format"]
        files = about["files"] if version == 1 else {}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}/{MANIFEST} is damaged: {error!r}") from error
    if version != 1:
        _check_format(path, about)
        raise CheckpointError(f"{path}/{SUMS} is missing.")
    for name, expected in files.items():
        with _open(path, name) as file:
            damaged = _digest(file) != expected["sha256"]
        if damaged:
            raise CheckpointError(
                f"{path}/{name} is damaged: its SHA-256 is not the one in {MANIFEST}."
                " Load another tag."
            )
    # Only here: nothing else needs it.
    import h5py

    file = h5py.File(path / "state.h5")
    arrays = {
        group: [
            _of_older(group, index, file[group][name])
            for index, name in enumerate(sorted(file[group]))
        ]
        for group in ("weights", "optimizer")
    }
    arrays["weights"] = [
        array._replace(name=f"weights/{name}")
        for array, name in zip(arrays["weights"], about["paths"], strict=True)
    ]
    ranks = json.loads((path / RANKS).read_text())
    return Stored(path, about, ranks, arrays, hashlib.sha256(content).hexdigest(), file)


def _of_older(group, index, dataset):
    name = f"{group}/#{index}"
    return Array(name, dataset.dtype, dataset.shape, lambda: dataset[()])
