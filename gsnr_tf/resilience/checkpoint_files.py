"""The files of a checkpoint, and which there are.

    folder/latest                  the tag of the newest checkpoint, one line
    folder/.lock                   who saves here: `folder_lock`
    folder/tag/state.safetensors   weights/…, optimizer/…: arrays, see `array_file`
    folder/tag/ranks.json          for each rank the state of its random numbers
    folder/tag/manifest.json       format, names in order, counters, client_state
    folder/tag/SHA256SUMS          of the other three, as `sha256sum -c` reads it

`checkpoint_write` writes them, `checkpoint_read` reads them.
"""

import os
import re

FORMAT = 2
STATE, RANKS, MANIFEST, SUMS = FILES = (
    "state.safetensors",
    "ranks.json",
    "manifest.json",
    "SHA256SUMS",
)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or what is there cannot be loaded."""


def sums_text(sums):
    """Bytes of SHA256SUMS.

    Args:
        sums: Dict of digests in hexadecimal, by name of the file, in the order of `FILES`.
    """
    return "".join(f"{digest}  {name}\n" for name, digest in sums.items()).encode()


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
            if (path / MANIFEST).is_file():
                return path
    except (OSError, UnicodeError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error
    if (folder / tag).is_dir():
        raise CheckpointError(
            f"{folder / tag}/{MANIFEST} is missing, so this is no checkpoint of this"
            f" package, or no longer{deepspeed(folder / tag)}. {_there(folder)}"
        )
    no = "the checkpoint" if where.endswith("names") else "no checkpoint"
    gone = ", which is not there" if where.endswith("names") else ""
    raise CheckpointError(f"{where} {no} {tag!r}{gone}. {_there(folder)}")


def tags(folder):
    """Tags of the checkpoints in a folder, a list; numbers in their order."""
    found = {path.parent.name for path in folder.glob(f"*/{MANIFEST}")}
    found |= {
        path.parent.name[1 : -len(".previous")] for path in folder.glob(f".*.previous/{MANIFEST}")
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
    unfinished = begun(folder)
    if unfinished is not None:
        return unfinished
    if (folder / MANIFEST).exists():
        raise CheckpointError(
            f"{folder} is itself a checkpoint. Give the folder {folder.parent} and"
            f" tag={folder.name!r}."
        )
    if tags(folder):
        raise CheckpointError(
            f"{folder} has checkpoints, and no file `latest` that says which is the"
            f" newest. Give one as tag, or write it into {latest}. {_there(folder)}"
        )
    for path in sorted(folder.glob("*/")):
        if told := deepspeed(path):
            raise CheckpointError(f"{path} is no checkpoint of this package{told}.")
    return None


def begun(folder):
    """Tag of a checkpoint that was whole when its job ended before it wrote `latest`."""
    try:
        tag = (folder / ".latest.writing").read_text(encoding="utf-8").strip()
        check_tag(tag)
        return tag if (folder / tag / MANIFEST).is_file() else None
    except (OSError, UnicodeError, CheckpointError):
        return None


def _there(folder):
    found = tags(folder)
    shown = [f"… ({len(found) - 20} more)", *found[-20:]] if len(found) > 20 else found
    return f"There are: {', '.join(shown) or 'none'}."


def deepspeed(path):
    """What to add to a message where DeepSpeed's files lie in a folder."""
    found = sorted(p.name for p in path.glob("*_states.pt"))
    if not found:
        return ""
    return (
        f": it holds {found[0]}, which DeepSpeed writes and PyTorch alone can read; its"
        " weights have to be converted, and assigned with `model.set_weights`"
    )
