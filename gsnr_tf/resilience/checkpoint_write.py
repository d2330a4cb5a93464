"""Checkpoints written so that no crash and no disk can spoil the ones before.

A checkpoint is written beside its place, to disk, and then renamed; afterwards `latest`
likewise.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil

import numpy as np

from gsnr_tf.resilience import array_file, folder_lock
from gsnr_tf.resilience.checkpoint_files import (
    FORMAT,
    MANIFEST,
    RANKS,
    STATE,
    SUMS,
    CheckpointError,
    begun,
    check_tag,
    deepspeed,
    sums_text,
)

# What the folders and the blocks of four small files may take, in bytes.
_SLACK = 2**16
# Elements that are looked at together.
_BLOCK = 2**24


def write(folder, tag, arrays, ranks, about):
    """Writes a checkpoint; what there was stays whole until it is there.

    Args:
        folder: `pathlib.Path`.
        tag: String, the name of the folder inside.
        arrays: Dict of lists of `Array`, by group. Each is asked for its value once,
            in order, and not kept.
        ranks: What ranks.json holds.
        about: Dict, what manifest.json holds besides.

    Returns:
        Names of the arrays among the weights that have an element that is not finite.

    Raises:
        CheckpointError: No room, another job saves here, or something else is there;
            nothing has changed.
    """
    check_tag(tag)
    listed = [array for group in arrays.values() for array in group]
    ranks = json.dumps(ranks).encode()
    names = {group: [array.name for array in each] for group, each in arrays.items()}
    about = {"format": FORMAT, "arrays": names, **about}
    needed = sum(array.bytes for array in listed) + len(array_file.header(listed))
    needed += len(ranks) + len(json.dumps(about, indent=1)) + _SLACK
    try:
        _make_ready(folder, tag, needed)
        # From here on the folder is this job's.
        with _nothing_left(folder, tag) as aside:
            not_finite = _write_files(aside, listed, ranks, about)
            _publish(aside, folder, tag)
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot take the checkpoint {tag!r}: {error}. It needs"
            f" {needed:,} bytes, and {_free(folder):,} are free. The checkpoints that"
            " were there are whole."
        ) from error
    return not_finite


def _make_ready(folder, tag, needed):
    """Takes the folder, and removes what killed jobs have left there."""
    folder.mkdir(parents=True, exist_ok=True)
    holder = folder_lock.acquire(folder)
    if holder is not None:
        raise CheckpointError(
            f"Another job saves its checkpoints to {folder}, and still runs: {holder}."
            " Give this one a folder of its own, or end that one."
        )
    target = folder / tag
    if target.exists() and not (target / MANIFEST).exists():
        raise CheckpointError(
            f"{target} is there and no checkpoint of this package, so it is not"
            f" replaced{deepspeed(target)}. Use another tag."
        )
    _clean(folder, tag)
    free = _free(folder)
    if free < needed:
        raise CheckpointError(
            f"{folder} has no room for the checkpoint {tag!r}: it needs {needed:,}"
            f" bytes, and {free:,} are free. Remove old checkpoints, or give another"
            " folder. Nothing was written."
        )


@contextlib.contextmanager
def _nothing_left(folder, tag):
    """A new folder beside the tag's place, which is gone again where writing fails."""
    aside = folder / f".{tag}.writing"
    try:
        aside.mkdir()
        yield aside
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        with contextlib.suppress(OSError):
            _remove(folder / ".latest.writing")
        raise


def _clean(folder, tag):
    if begun(folder) is not None and not (folder / "latest").exists():
        os.replace(folder / ".latest.writing", folder / "latest")
    # Without the lock, another tag's files may be those of a job that runs.
    which = "*" if folder_lock.holds(folder) else _escaped(tag)
    for path in folder.glob(f".{which}.writing"):
        _remove(path)
    for path in folder.glob(f".{which}.previous"):
        target = folder / path.name[1 : -len(".previous")]
        if target.exists():
            _remove(path)
        else:
            os.rename(path, target)


def _write_files(aside, arrays, ranks, about):
    not_finite = []

    def state():
        yield array_file.header(arrays)
        for array in arrays:
            value = np.asarray(array.value())
            if (value.dtype, value.shape) != (array.dtype, array.shape):
                raise CheckpointError(
                    f"{array.name} is {value.dtype} of shape {value.shape}, and was"
                    f" said to be {array.dtype} of shape {array.shape}."
                )
            if array.name.startswith("weights/") and not _is_finite(value):
                not_finite.append(array.name)
            yield array_file.as_bytes(value)

    sums = {STATE: _write(aside / STATE, state())}
    sums[RANKS] = _write(aside / RANKS, [ranks])
    manifest = json.dumps({**about, "not_finite": not_finite}, indent=1)
    sums[MANIFEST] = _write(aside / MANIFEST, [manifest.encode()])
    _write(aside / SUMS, [sums_text(sums)])
    _to_disk(aside)
    return not_finite


def _publish(aside, folder, tag):
    target, previous = folder / tag, folder / f".{tag}.previous"
    # First, so that a crash before `latest` is there leaves what it was to say.
    latest = folder / ".latest.writing"
    _write(latest, [f"{tag}\n".encode()])
    if target.exists():
        os.rename(target, previous)
    try:
        os.rename(aside, target)
    except OSError:
        if previous.exists():
            os.rename(previous, target)
        raise
    os.replace(latest, folder / "latest")
    _to_disk(folder)
    _remove(previous)


def _write(path, parts):
    """Writes bytes to a file, and to disk; returns their SHA-256."""
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for part in parts:
            file.write(part)
            digest.update(part)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _is_finite(value):
    if value.dtype.kind in "biu":
        return True
    flat = value.reshape(-1)
    # In pieces, as this takes a byte for each element.
    return all(
        np.isfinite(flat[start : start + _BLOCK]).all() for start in range(0, flat.size, _BLOCK)
    )


def _free(folder):
    """Bytes free on the disk of a folder, which need not be there yet."""
    for path in (folder.absolute(), *folder.absolute().parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(path).free
    return 0


def _remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _to_disk(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _escaped(tag):
    return re.sub(r"([*?[])", r"[\1]", tag)
