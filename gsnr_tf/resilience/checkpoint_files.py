"""The files of a checkpoint, written so that a crash cannot spoil the one before.

    folder/latest                  the tag of the newest checkpoint, one line
    folder/.lock                   who saves here: `folder_lock`
    folder/tag/state.safetensors   weights/…, optimizer/…: arrays, see `array_file`
    folder/tag/ranks.json          for each rank the state of its random numbers
    folder/tag/manifest.json       format, names in order, counters, client_state
    folder/tag/SHA256SUMS          of the other three, as `sha256sum -c` reads it

A checkpoint is written beside its place, to disk, and then renamed; afterwards `latest`
likewise. Checkpoints of format 1, whose arrays are in state.h5, are still read.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil

import numpy as np

from gsnr_tf.resilience import array_file, folder_lock
from gsnr_tf.resilience.array_file import Array

FORMAT = 2
_STATE, _RANKS, _MANIFEST, _SUMS = FILES = (
    "state.safetensors",
    "ranks.json",
    "manifest.json",
    "SHA256SUMS",
)
# What the folders and the blocks of four small files may take.
_SLACK = 2**16
_BLOCK = 2**24


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or what is there cannot be loaded."""


# ---- writing
# --------------------------------------------------------------------------


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
    aside = folder / f".{tag}.writing"
    try:
        try:
            _make_ready(folder, tag, needed)
            aside.mkdir()
            not_finite = _write_files(aside, listed, ranks, about)
            _publish(aside, folder, tag)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            with contextlib.suppress(OSError):
                _remove(folder / ".latest.writing")
            raise
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
    if target.exists() and not (target / _MANIFEST).exists():
        raise CheckpointError(
            f"{target} is there and no checkpoint of this package, so it is not"
            f" replaced{_deepspeed(target)}. Use another tag."
        )
    _clean(folder, tag)
    free = _free(folder)
    if free < needed:
        raise CheckpointError(
            f"{folder} has no room for the checkpoint {tag!r}: it needs {needed:,}"
            f" bytes, and {free:,} are free. Remove old checkpoints, or give another"
            " folder. Nothing was written."
        )


def _clean(folder, tag):
    begun = _begun(folder)
    if begun is not None and not (folder / "latest").exists():
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

    sums = {_STATE: _write(aside / _STATE, state())}
    sums[_RANKS] = _write(aside / _RANKS, [ranks])
    manifest = json.dumps({**about, "not_finite": not_finite}, indent=1)
    sums[_MANIFEST] = _write(aside / _MANIFEST, [manifest.encode()])
    _write(aside / _SUMS, [_sums_text(sums)])
    _to_disk(aside)
    return not_finite


def _publish(aside, folder, tag):
    target, previous = folder / tag, folder / f".{tag}.previous"
    # First, so that a crash before `latest` is there leaves the tag that it was to have.
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
        np.isfinite(flat[start : start + _BLOCK]).all()
        for start in range(0, flat.size, _BLOCK)
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


# ---- finding
# --------------------------------------------------------------------------


def check_tag(tag):
    """Raises where a tag is not the name of a folder inside the folder."""
    if (
        not tag
        or tag.startswith(".")
        or tag == "latest"
        or re.search(r"[/\\\0-\37]", tag)
        or len(os.fsencode(tag)) > 200
    ):
        raise CheckpointError(
            "A tag is the name of a folder, of at most 200 bytes, without slashes and"
            f" not beginning with a dot. Received: tag={tag[:300]!r}"
        )


def locate(folder, tag=None):
    """Path of a checkpoint; `None` where `tag` is `None` and none was ever written.

    Raises:
        CheckpointError: There is no such checkpoint, or there are some and no `latest`.
    """
    try:
        where = f"{folder}/latest names" if tag is None else f"{folder} has"
        if tag is None:
            tag = _latest(folder)
        if tag is None:
            return None
        check_tag(tag)
        # A crash between two renames leaves the old checkpoint of a tag under this name.
        for path in (folder / tag, folder / f".{tag}.previous"):
            if (path / _MANIFEST).is_file():
                return path
    except (OSError, UnicodeError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error
    if (folder / tag).is_dir():
        raise CheckpointError(
            f"{folder / tag}/{_MANIFEST} is missing, so this is no checkpoint of this"
            f" package, or no longer{_deepspeed(folder / tag)}. {_there(folder)}"
        )
    no = "the checkpoint" if where.endswith("names") else "no checkpoint"
    gone = ", which is not there" if where.endswith("names") else ""
    raise CheckpointError(f"{where} {no} {tag!r}{gone}. {_there(folder)}")


def tags(folder):
    """Tags of the checkpoints in a folder, a list; numbers in their order."""
    found = {path.parent.name for path in folder.glob(f"*/{_MANIFEST}")}
    found |= {
        path.parent.name[1 : -len(".previous")]
        for path in folder.glob(f".*.previous/{_MANIFEST}")
    }
    found = [tag for tag in found if not tag.startswith(".")]
    return sorted(found, key=lambda tag: [*map(_number, re.split(r"(\d+)", tag))])


def _number(text):
    return (int(text), "") if text.isdecimal() and len(text) < 100 else (-1, text)


def _latest(folder):
    """The tag in `latest`; `None` where nothing was ever written."""
    latest = folder / "latest"
    if latest.exists():
        return latest.read_text(encoding="utf-8").strip()
    begun = _begun(folder)
    if begun is not None:
        return begun
    if (folder / _MANIFEST).exists():
        raise CheckpointError(
            f"{folder} is itself a checkpoint. Give the folder {folder.parent} and"
            f" tag={folder.name!r}."
        )
    if tags(folder):
        raise CheckpointError(
            f"{folder} has checkpoints, and no file `latest` that says which is the"
            f" newest. Give one as tag, or write it into {latest}. {_there(folder)}"
        )
    for path in sorted(folder.glob("*/*.pt")):
        raise CheckpointError(f"{path.parent} is no checkpoint{_deepspeed(path.parent)}.")
    return None


def _begun(folder):
    """Tag of a checkpoint that was whole when its job ended before it wrote `latest`."""
    try:
        tag = (folder / ".latest.writing").read_text(encoding="utf-8").strip()
        check_tag(tag)
        return tag if (folder / tag / _MANIFEST).is_file() else None
    except (OSError, UnicodeError, CheckpointError):
        return None


def _there(folder):
    found = tags(folder)
    shown = [f"… ({len(found) - 20} more)", *found[-20:]] if len(found) > 20 else found
    return f"There are: {', '.join(shown) or 'none'}."


def _deepspeed(path):
    """What to add to a message where PyTorch's files lie in a folder."""
    found = sorted(p.name for p in path.glob("*.pt")) if path.is_dir() else []
    if not found:
        return ""
    return (
        f": it holds {found[0]}, which DeepSpeed writes and PyTorch alone can read; its"
        " weights have to be converted, and assigned with `model.set_weights`"
    )


def _escaped(tag):
    return re.sub(r"([*?[])", r"[\1]", tag)


# ---- reading
# --------------------------------------------------------------------------


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
        if not (path / _SUMS).exists():
            return _read_older(path)
        with contextlib.ExitStack() as stack:
            files = {name: _open(path, name) for name in FILES[:3]}
            for file in files.values():
                stack.callback(file.close)
            sums = {name: _digest(file) for name, file in files.items()}
            _check_sums(path, sums)
            about = json.loads(files[_MANIFEST].read())
            _check_format(path, about)
            ranks = json.loads(files[_RANKS].read())
            arrays = _by_group(array_file.read(files[_STATE]), about["arrays"])
            stack.pop_all()
        for name in (_MANIFEST, _RANKS):
            files[name].close()
        digest = hashlib.sha256(_sums_text(sums)).hexdigest()
        return Stored(path, about, ranks, arrays, digest, files[_STATE])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error!r}") from error


def _by_group(arrays, names):
    by_name = {array.name: array for array in arrays}
    return {group: [by_name[name] for name in each] for group, each in names.items()}


def _sums_text(sums):
    lines = [f"{digest}  {name}\n" for name, digest in sums.items()]
    return "".join(lines).encode()


def _check_sums(path, sums):
    """Compares with SHA256SUMS to the byte, so that nothing in it may differ either."""
    expected = (path / _SUMS).read_bytes()
    if expected == _sums_text(sums):
        return
    lines = expected.split(b"\n")
    differing = [
        f"{path}/{name}"
        for name, digest in sums.items()
        if f"{digest}  {name}".encode() not in lines
    ]
    raise CheckpointError(
        f"{' or '.join([*differing, f'{path}/{_SUMS}'])} is damaged: one does not fit the"
        " other. Load another tag."
    )


def _check_format(path, about):
    if about["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has the format {about['format']!r}; this version reads 1 and"
            f" {FORMAT}."
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
    with _open(path, _MANIFEST) as file:
        content = file.read()
    try:
        about = json.loads(content)
        version = about["format"]
        files = about["files"] if version == 1 else {}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}/{_MANIFEST} is damaged: {error!r}") from error
    if version != 1:
        _check_format(path, about)
        raise CheckpointError(f"{path}/{_SUMS} is missing.")
    for name, expected in files.items():
        with _open(path, name) as file:
            damaged = _digest(file) != expected["sha256"]
        if damaged:
            raise CheckpointError(
                f"{path}/{name} is damaged: its SHA-256 is not the one in {_MANIFEST}."
                " Load another tag."
            )
    # Only here: nothing else needs it.
    import h5py

    file = h5py.File(path / "state.h5")
    arrays = {
        group: [_of_older(group, index, file[group][name]) for index, name in
                enumerate(sorted(file[group]))]
        for group in ("weights", "optimizer")
    }
    arrays["weights"] = [
        array._replace(name=f"weights/{name}")
        for array, name in zip(arrays["weights"], about["paths"], strict=True)
    ]
    ranks = json.loads((path / _RANKS).read_text())
    return Stored(path, about, ranks, arrays, hashlib.sha256(content).hexdigest(), file)


def _of_older(group, index, dataset):
    name = f"{group}/#{index}"
    return Array(name, dataset.dtype, dataset.shape, lambda: dataset[()])
