"""Few rows for many variables: what a page can show of a long model."""

import itertools
import re


def group(paths, most):
    """Groups of neighbouring variables, at most `most` of them.

    Variables stay single while they are few enough. Otherwise those that share the
    beginning of their paths go together, by the longest beginning that leaves few
    enough groups; and if even the shortest leaves too many, neighbours go together.

    Args:
        paths: List of paths, "/" between their parts.
        most: Int, at least 1.

    Returns:
        List of pairs of a label and a list of indices, in the order of `paths`.
    """
    split = [path.split("/") for path in paths]
    for depth in range(max(map(len, split), default=0), 0, -1):
        groups = [
            ("/".join(beginning), [index for index, _ in members])
            for beginning, members in itertools.groupby(
                enumerate(split), key=lambda pair: pair[1][:depth]
            )
        ]
        if len(groups) <= most:
            break
    else:
        groups = []
    if not groups or len(groups) > most:
        size = -(-len(paths) // most)
        chunks = [list(range(i, min(i + size, len(paths)))) for i in range(0, len(paths), size)]
        groups = [(f"{paths[c[0]]} … {paths[c[-1]]}", c) for c in chunks]
    return [
        (label if len(members) == 1 else f"{label} ({len(members)})", members)
        for label, members in groups
    ]


def short(label, most):
    """A label of at most `most` characters, its middle left out."""
    label = re.sub(r"\s+", " ", label)
    if len(label) <= most:
        return label
    head = (most - 1) // 2
    return f"{label[:head]}…{label[len(label) - (most - 1 - head) :]}"
