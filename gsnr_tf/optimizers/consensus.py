"""What must be the same on all ranks and cannot change: compared once, before the first step.

A rank with another γ, or with its variables in another order, would train to the end and
not one gradient would be what it is taken for.
"""

import itertools
import re

import keras
from keras.src.utils.naming import to_snake_case

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
    """Names of layer and variable, in which the numbers that Keras counts up in each
    process begin at 0.

    Layers that nobody named are dense, dense_1 … in a process that made no others
    before, and dense_3, dense_4 … in one that did. What a path begins with depends on
    whether a model was made or loaded.
    """
    split = [
        [_NUMBERED.match(part).groups() for part in path_of(variable).split("/")[-2:]]
        for variable in variables
    ]
    counted, numbers = _counted_by_keras(), {}
    for parts in split:
        for base, number in parts:
            numbers.setdefault(base, set()).add(int(number or 0))
    places = {base: sorted(numbers[base]) for base in counted & numbers.keys()}

    def told(base, number):
        if base in places:
            number = places[base].index(int(number or 0)) or None
        return base if number is None else f"{base}_{number}"

    return ["/".join(told(*part) for part in parts) for parts in split]


class Order:
    """In which order optimizers were made, of those that ranks train with.

    Two nets alike, each with an optimizer of its own, look the same whichever is trained
    first. But ranks that train them in another order have made them in the same.
    """

    def __init__(self):
        self._made = itertools.count()
        self._met = set()

    def number(self):
        """A number for an optimizer that is being made in this process."""
        return next(self._made)

    def place(self, number):
        """Which one it is of those that have met their like so far."""
        self._met.add(number)
        return sorted(self._met).index(number)


def _counted_by_keras():
    """Names that Keras gives to layers and models by their class."""
    names, classes = set(), [keras.Layer]
    while classes:
        one = classes.pop()
        names.add(to_snake_case(one.__name__))
        classes.extend(one.__subclasses__())
    return names


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
