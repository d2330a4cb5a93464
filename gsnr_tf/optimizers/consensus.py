"""What must be the same on all ranks and cannot change: compared once, before the first step.

A rank with another γ, or with its variables in another order, would train to the end and
not one gradient would be what it is taken for.
"""

import re

import keras

from gsnr_tf.comm import RanksDiffer
from gsnr_tf.optimizers.exclusions import path_of

# Names are counted by each process for itself; a rate may change, and is told with
# every update.
_OWN = ("name", "learning_rate")
_NUMBERED = re.compile(r"^(.*?)(?:_(\d+))?$")


def facts(optimizer, variables, further):
    """Dict of what all ranks must have alike, by what it is called in a message.

    Args:
        optimizer: The optimizer.
        variables: Its trainable variables, in order.
        further: Dict of more of the kind.
    """
    config = optimizer.get_config()
    kept = {name: value for name, value in config.items() if name not in _OWN}
    known = {"optimizer": f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"}
    known.update({name: repr(value) for name, value in sorted(kept.items())})
    known.update({name: repr(value) for name, value in further.items()})
    known["number of variables"] = len(variables)
    for index, (path, variable) in enumerate(zip(comparable_paths(variables), variables)):
        dtype = keras.backend.standardize_dtype(variable.dtype)
        known[f"variable {index}"] = f"{path} {tuple(variable.shape)} {dtype}"
    return known


def comparable_paths(variables):
    """Paths in which the numbers that Keras counts up in each process begin at 0.

    Layers that nobody named are dense, dense_1 … in a process that made no others
    before, and dense_3, dense_4 … in one that did.
    """
    split = [
        [_NUMBERED.match(part).groups() for part in path_of(variable).split("/")]
        for variable in variables
    ]
    numbers = {}
    for parts in split:
        for base, number in parts:
            numbers.setdefault(base, set()).add(int(number or 0))
    places = {base: sorted(found) for base, found in numbers.items()}

    def told(base, number):
        place = places[base].index(int(number or 0))
        return f"{base}_{place}" if place else base

    return ["/".join(told(*part) for part in parts) for parts in split]


def check(by_rank):
    """Raises `RanksDiffer`, on all ranks, where the `facts` of the ranks differ."""
    first = by_rank[0]
    for rank, other in enumerate(by_rank):
        for name in {**first, **other}:
            here, there = first.get(name, "not there"), other.get(name, "not there")
            if here != there:
                raise RanksDiffer(
                    f"The ranks have different optimizers: {name} is {here} on rank 0 and "
                    f"{there} on rank {rank}. All ranks must make the same model and "
                    "optimizer, and train several optimizers in the same order."
                )
