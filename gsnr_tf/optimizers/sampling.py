"""What a sample of the gradient is, how many there are, and where they come together."""

import dataclasses
from typing import NamedTuple

from gsnr_tf._small_models import is_small
from gsnr_tf.comm.exchange_plan import by_host_pays
from gsnr_tf.stats import SOUND_SAMPLES

# What may be a sample, the smallest first.
SAMPLES = ("micro_batch", "worker", "host")


class Workers(NamedTuple):
    """Who trains together.

    Attributes:
        number: Int, how many workers.
        hosts: Int, how many hosts samples could go by; 1 where nothing is gained.
        can_shard: Whether each worker can own a shard.
        sharding_pays: Whether "auto" lets it.
        kind: What they are, for messages.
    """

    number: int
    hosts: int = 1
    can_shard: bool = False
    sharding_pays: bool = False
    kind: str = "LocalCommunicator"

    @classmethod
    def of(cls, communicator):
        """Those of a `Communicator`. Ranks must all ask at one point."""
        return cls(
            communicator.workers,
            communicator.hosts,
            communicator.can_shard,
            communicator.sharding_pays,
            type(communicator).__name__,
        )


class Wishes(NamedTuple):
    """What the user asked for: see `GSNROptimizer`'s arguments of these names.

    `accumulation` is the number of micro-batches of a worker in an update, and `varies`
    whether it may change.
    """

    sample: str = "auto"
    sharding: str = "auto"
    communication_dtype: str = "float32"
    accumulation: int = 1
    varies: bool = False
    estimator: str = "paper"


@dataclasses.dataclass(frozen=True)
class SamplingPlan:
    """What `plan` decides.

    Attributes:
        sample: One of `SAMPLES`.
        workers: Int, how many.
        hosts: Int, how many hosts samples go by; 1 where all ranks exchange at once.
        sharded: Whether each worker owns a shard.
        gathered: Whether each worker gets all samples, as they are.
        keeps_m2: Whether a worker keeps how far its micro-batches differ.
    """

    sample: str
    workers: int
    hosts: int
    sharded: bool
    gathered: bool
    keeps_m2: bool

    @property
    def compares_workers(self):
        """Whether the workers of a host are samples of their own."""
        return self.sample != "host"

    def samples(self, accumulation):
        """k, of an update of so many micro-batches of each worker, an int or a tensor."""
        if self.sample == "host":
            return self.hosts
        return self.workers * (accumulation if self.sample == "micro_batch" else 1)


def plan(workers, wishes, elements):
    """Decides what a sample is, and where samples come together.

    Args:
        workers: `Workers`.
        wishes: `Wishes`.
        elements: How many numbers the model has to train.

    Returns:
        A `SamplingPlan`.

    Raises:
        ValueError: A wish cannot be met by these workers.
    """
    gathered = _gathers(workers, wishes, elements)
    sharded = not gathered and _shards(workers, wishes)
    _check_sharding(sharded, workers, wishes)
    hosts = workers.hosts if sharded else 1
    sample = _sample(hosts, workers, wishes)
    by_host = by_host_pays(hosts, workers.number // hosts, sample == "host")
    accumulates = wishes.accumulation > 1 or wishes.varies
    return SamplingPlan(
        sample=sample,
        workers=workers.number,
        hosts=hosts if by_host else 1,
        sharded=sharded,
        gathered=gathered,
        keeps_m2=accumulates and sample == "micro_batch",
    )


def _gathers(workers, wishes, elements):
    ranks = workers.can_shard and workers.number > 1
    # Only to be had with shards.
    asked = wishes.sample == "host" or wishes.communication_dtype != "float32"
    small = is_small(elements, workers.number)
    return small and ranks and wishes.sharding == "auto" and not asked


def _shards(workers, wishes):
    auto = wishes.sharding == "auto"
    wanted = workers.sharding_pays if auto else wishes.sharding != "none"
    return wanted and workers.can_shard and workers.number > 1


def _sample(hosts, workers, wishes):
    if wishes.sample == "host" and hosts == 1:
        raise ValueError(
            "A host is a sample only where slices can go by host. Received: "
            f"sample='host' and sharding='{wishes.sharding}' with {workers.number} "
            "worker(s), not on several hosts of as many ranks each. Leave `sample` out."
        )
    if wishes.sample != "auto":
        return wishes.sample
    # For any estimator: the noise scale is estimated from these samples too.
    sound = SOUND_SAMPLES["paper"]
    for sample, number in (("host", hosts), ("worker", workers.number)):
        if number >= sound:
            return sample
    return "micro_batch"


def _check_sharding(sharded, workers, wishes):
    if sharded:
        return
    there_are = f"{workers.number} worker(s) of {workers.kind}"
    if wishes.sharding == "slices":
        raise ValueError(
            "Slices need Horovod and two ranks or more. Received: sharding='slices' "
            f"with {there_are}. Start under horovodrun, or leave `sharding` out."
        )
    if wishes.communication_dtype != "float32" and workers.number > 1:
        raise ValueError(
            "Only slices travel in another dtype than float32. Received: "
            f"communication_dtype='{wishes.communication_dtype}' and "
            f"sharding='{wishes.sharding}' with {there_are}. Start under horovodrun with "
            "sharding='slices', or leave `communication_dtype` out."
        )


def too_few(decided, wishes, optimizer):
    """What to say of the number of samples.

    Args:
        decided: `SamplingPlan`.
        wishes: `Wishes`.
        optimizer: Name of the optimizer's class.

    Returns:
        A warning where the samples are few for the estimator, else `None`.

    Raises:
        ValueError: There is but one sample.
    """
    samples = decided.samples(wishes.accumulation)
    received = f"{decided.workers} worker(s) and gradient_accumulation_steps={wishes.accumulation}"
    if wishes.sample != "auto":
        received += f" with sample='{wishes.sample}'"
    if samples < 2:
        raise ValueError(
            f"{optimizer} measures how far samples of the gradient agree, and one sample "
            f"has no spread. Received: {received}. Either start several ranks (`gsnr-tf "
            "run --np 8 train.py`), or make model and optimizer inside the scope of a "
            "tf.distribute strategy with several replicas, or set "
            "gradient_accumulation_steps to 2 or more (8 is a good start)."
        )
    sound = SOUND_SAMPLES[wishes.estimator]
    if samples >= sound:
        return None
    return (
        f"{optimizer} has k={samples} samples an update ({received}). Below {sound} the "
        "estimate is poor: of pure noise, r has the expectation 1/(k-3), and at k=2 "
        "about 99% of all multipliers sit on the floor. Raise "
        "gradient_accumulation_steps, or take estimator='robust'."
    )
