"""The text of Python's standard library, which every installation has, as bytes.

Files, not lines, are divided into training, validation and test, so that no text is
in two of them. Which file goes where depends on its path alone.
"""

import hashlib
import sysconfig
from pathlib import Path

import numpy as np

ELSEWHERE = {"site-packages", "dist-packages", "__pycache__"}
# Tests are two thirds of some installations and missing from others.
TESTS = {"test", "tests", "idle_test"}
FEWEST_BYTES = 1_000_000


def files(root):
    """Source files of the library below `root`, by path, without its tests."""
    return sorted(
        path
        for path in root.rglob("*.py")
        if not (ELSEWHERE | TESTS) & set(path.relative_to(root).parts)
    )


def share(path):
    """0 to 99, as good as random, from a relative path."""
    return hashlib.sha256(path.as_posix().encode()).digest()[0] * 100 // 256


def load(root=None):
    """`(train, validation, test)`, arrays of unsigned bytes: 80, 10 and 10 % of the files."""
    root = Path(root or sysconfig.get_paths()["stdlib"])
    texts = [], [], []
    for path in files(root):
        place = share(path.relative_to(root))
        texts[(place >= 80) + (place >= 90)].append(path.read_bytes())
    found = sum(len(text) for split in texts for text in split)
    if found < FEWEST_BYTES:
        raise SystemExit(
            f"There are {found:,} bytes of Python source below {root}, and this example "
            "needs a million. A Python with its library as files has them."
        )
    return tuple(np.frombuffer(b"".join(split), np.uint8) for split in texts)


def windows(text, length):
    """`[n, length]`: the text cut into pieces that do not overlap, the rest dropped."""
    return text[: len(text) // length * length].reshape(-1, length)


def spread(pieces, number):
    """`[number, length]`: pieces from all over the text, as far apart as they can be."""
    return pieces[np.linspace(0, len(pieces) - 1, number).round().astype(int)]


def masked(pieces, seed, mask=256):
    """What BERT is shown and what it must say.

    15 % of the positions are asked for. Of those, 80 % are hidden, 10 % are replaced by
    a random byte and 10 % left as they are.

    Args:
        pieces: Array `[n, length]` of bytes.
        seed: Int.
        mask: The token that hides.

    Returns:
        `(shown, asked)`, int32 arrays `[n, length]`; asked is -1 where nothing is.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.random(pieces.shape) < 0.15
    fate = rng.random(pieces.shape)
    pieces = pieces.astype("int32")
    shown = pieces.copy()
    shown[chosen & (fate < 0.8)] = mask
    random = chosen & (fate >= 0.9)
    shown[random] = rng.integers(0, 256, random.sum())
    return shown, np.where(chosen, pieces, -1)
