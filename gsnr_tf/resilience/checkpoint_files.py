"""The files of a checkpoint, written so that a crash cannot spoil the one before.

    folder/latest              the tag of the newest checkpoint, one line
    folder/tag/state.h5        weights/000000, … and optimizer/000000, …: arrays
    folder/tag/ranks.json      for each rank the state of its random numbers
    folder/tag/manifest.json   format, sizes and SHA-256 of the other files, counters,
                               client_state

A checkpoint is written beside its place, to disk, and then renamed; afterwards `latest`
likewise.
"""

import hashlib
import json
import os
import shutil

import h5py

FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or what is there cannot be loaded."""


def write(folder, tag, arrays, ranks, about):
    """Writes a checkpoint; what there was stays whole until it is there.

    Args:
        folder: `pathlib.Path`.
        tag: String, the name of the folder inside.
        arrays: Dict of lists of NumPy arrays, the groups of state.h5.
        ranks: What ranks.json holds.
        about: Dict, what manifest.json holds besides.
    """
    aside, target = folder / f".{tag}.writing", folder / tag
    previous = folder / f".{tag}.previous"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    with h5py.File(aside / "state.h5", "w") as file:
        for group, values in arrays.items():
            file.create_group(group)
            for index, value in enumerate(values):
                file[group][f"{index:06}"] = value
    (aside / "ranks.json").write_text(json.dumps(ranks))
    files = {
        name: {"bytes": (aside / name).stat().st_size, "sha256": _digest(aside / name)}
        for name in ("state.h5", "ranks.json")
    }
    manifest = {"format": FORMAT, "files": files, **about}
    (aside / "manifest.json").write_text(json.dumps(manifest, indent=1))
    for path in [*aside.iterdir(), aside]:
        _to_disk(path)
    if target.exists():
        shutil.rmtree(previous, ignore_errors=True)
        os.rename(target, previous)
    os.rename(aside, target)
    latest = folder / ".latest.writing"
    latest.write_text(tag + "\n")
    _to_disk(latest)
    os.replace(latest, folder / "latest")
    _to_disk(folder)
    shutil.rmtree(previous, ignore_errors=True)


def locate(folder, tag=None):
    """Path of a checkpoint; `None` where `tag` is `None` and none was ever written."""
    if tag is None:
        latest = folder / "latest"
        if not latest.exists():
            return None
        tag = latest.read_text().strip()
    # A crash between two renames leaves the old checkpoint of a tag under this name.
    for path in (folder / tag, folder / f".{tag}.previous"):
        if path.is_dir():
            return path
    there = sorted(p.name for p in folder.glob("*") if (p / "manifest.json").exists())
    raise CheckpointError(
        f"{folder} has no checkpoint {tag!r}. There are: {', '.join(there) or 'none'}."
    )


def read(path):
    """`(about, arrays, ranks)` of a checkpoint, after checking that it is whole."""
    try:
        about = json.loads((path / "manifest.json").read_text())
        files = about["files"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}/manifest.json is damaged: {error}") from error
    if about["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has the format {about['format']}; this version reads {FORMAT}."
        )
    for name, expected in files.items():
        if not (path / name).is_file():
            raise CheckpointError(f"{path}/{name} is missing.")
        size = (path / name).stat().st_size
        if size != expected["bytes"] or _digest(path / name) != expected["sha256"]:
            raise CheckpointError(
                f"{path}/{name} is damaged: {size} bytes with another SHA-256 than when"
                f" it was written ({expected['bytes']} bytes). Load another tag."
            )
    with h5py.File(path / "state.h5") as file:
        arrays = {
            group: [file[group][name][()] for name in sorted(file[group])]
            for group in ("weights", "optimizer")
        }
    return about, arrays, json.loads((path / "ranks.json").read_text())


def _digest(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _to_disk(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
