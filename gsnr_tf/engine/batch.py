"""The three sizes of a batch, of which any two give the third."""

from fractions import Fraction
from typing import NamedTuple

from gsnr_tf.engine.errors import ConfigError


class Batch(NamedTuple):
    """What an update is made of: `train = micro × accumulation × ranks`.

    Attributes:
        train: Examples of an update, over all ranks.
        micro: Examples of a micro-batch on one rank.
        accumulation: Micro-batches of an update on one rank.
        ranks: Number of ranks.
    """

    train: int
    micro: int
    accumulation: int
    ranks: int

    @property
    def samples(self):
        """k: how many samples of the gradient an update has."""
        return self.accumulation * self.ranks

    def accumulating(self, steps):
        """The `Batch` of so many micro-batches."""
        train = self.micro * steps * self.ranks
        return self._replace(train=train, accumulation=steps)


_NAMES = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
)


def resolve(train, micro, accumulation, ranks):
    """The `Batch` of a job, from what was given; `None` is what was not.

    As in DeepSpeed, `accumulation` is 1 where one size alone is given. Unlike there,
    nothing is rounded.

    Raises:
        ConfigError: They contradict each other, do not divide, or too few are given.
    """
    if ranks < 1:
        raise ConfigError(f"A job has at least 1 rank. Received: {ranks}")
    given = (train, micro, accumulation)
    if train is None and micro is None:
        raise ConfigError(
            "Give `train_batch_size` or `train_micro_batch_size_per_gpu`, best both:"
            " `gradient_accumulation_steps` then follows the number of ranks."
            f" {_told(given)}"
        )
    if accumulation is None and (train is None or micro is None):
        accumulation = 1
    if train is None:
        train = micro * accumulation * ranks
    elif micro is None:
        micro = Fraction(train, accumulation * ranks)
    elif accumulation is None:
        accumulation = Fraction(train, micro * ranks)
    if Fraction(train) != micro * accumulation * ranks:
        product = micro * accumulation * ranks
        raise ConfigError(
            "train_batch_size must be train_micro_batch_size_per_gpu × "
            f"gradient_accumulation_steps × ranks. {_told(given)}, on {ranks} rank(s): "
            f"{micro} × {accumulation} × {ranks} = {product}, not {train}. Set "
            f"train_batch_size to {product}, or leave one of the three out."
        )
    for name, size in zip(_NAMES, (train, micro, accumulation)):
        if Fraction(size).denominator != 1:
            raise ConfigError(_not_whole(given, name, size, train, ranks))
    return Batch(int(train), int(micro), int(accumulation), ranks)


def check_room(batch, largest):
    """Raises ConfigError where a batch cannot even double up to `largest`."""
    if 2 * batch.train > largest:
        raise ConfigError(
            "gsnr.batch_ramp doubles the batch, and cannot here. Received:"
            f" max_train_batch_size={largest}, with train_batch_size={batch.train}. Set"
            f" max_train_batch_size to {2 * batch.train} or more, or leave the section"
            " out."
        )


def _told(given):
    return "Received: " + ", ".join(
        f"{name}={'(not given)' if size is None else size}" for name, size in zip(_NAMES, given)
    )


def _not_whole(given, name, size, train, ranks):
    unit = int(train / size)
    near = [m for m in (train // unit * unit, (train // unit + 1) * unit) if m]
    return (
        f"{name} would be {float(size):g}, which is not a whole number. {_told(given)},"
        f" on {ranks} rank(s). Set train_batch_size to {' or '.join(map(str, near))},"
        " or change the number of ranks."
    )
