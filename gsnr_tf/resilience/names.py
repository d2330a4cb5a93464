"""Names of variables that are the same in every process.

Keras numbers what has no name of its own by what the process made before: the second
`Dense` is "dense_1", and in a process that builds the model anew "dense_7". What stays
is the order of these numbers.
"""

import re

# "dense_7"; not "block_07", which is somebody's own.
_NUMBERED = re.compile(r"(.+)_([1-9]\d{0,17})")


def renumbered(paths):
    """Paths whose numbers count from 0, for each base name in the numbers' order.

    Args:
        paths: List of strings, parts separated by slashes.
    """
    numbers = {}
    for path in paths:
        for base, number in map(_split, path.split("/")):
            numbers.setdefault(base, set()).add(number)
    place = {
        (base, number): index
        for base, found in numbers.items()
        for index, number in enumerate(sorted(found))
    }
    return [
        "/".join(f"{base}_{place[base, n]}" for base, n in map(_split, path.split("/")))
        for path in paths
    ]


def _split(part):
    match = _NUMBERED.fullmatch(part)
    return (match[1], int(match[2])) if match else (part, 0)


def of_slots(paths, weights):
    """Names of an optimizer's variables, without the optimizer's own.

    Keras calls them "adam_1/sequential_dense_7_kernel_momentum": the weight's path with
    underscores for slashes, and the slot.

    Args:
        paths: List of strings.
        weights: List of strings, paths of the model's variables.
    """
    own = dict(zip((path.replace("/", "_") for path in weights), renumbered(weights)))
    return [_of_slot(path.split("/", 1)[-1], own) for path in paths]


def _of_slot(name, weights):
    fitting = [weight for weight in weights if name.startswith(f"{weight}_")]
    if fitting:
        longest = max(fitting, key=len)
        return f"{weights[longest]}: {name[len(longest) + 1 :]}"
    # Not a slot of a weight; a number in it tells nothing.
    return re.sub(r"_\d+", "", name)
