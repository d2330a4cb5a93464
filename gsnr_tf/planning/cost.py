"""Seconds of a step on any number of ranks: the equations of README.md, and no more.

Hockney's model: a message of m bytes takes α + m/β. Collectives are sequences of
messages (Thakur, Rabenseifner and Gropp, 2005). Bytes, seconds, elements; pure
functions.
"""

import dataclasses
import math

from gsnr_tf._sound_samples import SOUND_SAMPLES
from gsnr_tf.comm.exchange_plan import by_host_pays

# The ways to take an optimizer's step that are compared.
# Slices go by host where that sends less through its link; FLAT tells what they would
# cost if all ranks exchanged at once there, too.
PLAIN, WHOLE, SLICES, FLAT = "plain", "none", "slices", "flat"
SCHEMES = (PLAIN, WHOLE, SLICES, FLAT)

# A backward pass does twice the arithmetic of the forward pass, and only while it
# runs can gradients be sent.
_BACKWARD_SHARE = 2 / 3


def _check(value, condition, rule):
    """Raises where a field of a dataclass is out of range."""
    for field in dataclasses.fields(value):
        received = getattr(value, field.name)
        if isinstance(received, (int, float)) and not condition(field.name, received):
            raise ValueError(f"{field.name} must be {rule}. Received: {received!r}")


def _not_negative(value):
    _check(value, lambda _, x: x >= 0 and not math.isnan(x), "0 or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Link:
    """What a message between two ranks takes.

    Attributes:
        latency: Seconds before its first byte arrives, α.
        bandwidth: Bytes per second, β, in each direction at once.
    """

    latency: float
    bandwidth: float

    def __post_init__(self):
        _not_negative(self)
        if self.bandwidth == 0:
            raise ValueError("bandwidth must be above 0. Received: 0")

    def seconds(self, size):
        """Of one message of `size` bytes."""
        return self.latency + size / self.bandwidth


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """Ranks on hosts; those of one host share its link to the others.

    Attributes:
        hosts: How many.
        ranks_per_host: How many on each.
        between: `Link` between hosts.
        within: `Link` between two ranks of a host.
    """

    hosts: int
    ranks_per_host: int
    between: Link
    within: Link

    def __post_init__(self):
        _check(self, lambda _, x: x >= 1 and x == int(x), "a whole number above 0")

    @property
    def ranks(self):
        return self.hosts * self.ranks_per_host


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """What the processor of a rank adds, measured by `calibrate` or left at 0.

    Attributes:
        fixed: Seconds of an update however small.
        launch: Seconds that the ranks take to agree on starting a collective.
        per_byte: Seconds for each byte that a rank sends and receives: copies, sums.
        plain: Seconds for each parameter of a plain optimizer's update.
        whole: The same of a GSNR update of whole variables.
        slices: The same of the part of a sharded update that every rank does for
            all parameters: packing, statistics of samples, unpacking.
        slice: The same of the part that it does for its own slice.
    """

    fixed: float = 0.0
    launch: float = 0.0
    per_byte: float = 0.0
    plain: float = 0.0
    whole: float = 0.0
    slices: float = 0.0
    slice: float = 0.0

    def __post_init__(self):
        _not_negative(self)

    def slowed(self, factor):
        """The costs where everything takes `factor` times as long."""
        return Costs(**{k: factor * v for k, v in dataclasses.asdict(self).items()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What is trained.

    Attributes:
        parameters: How many.
        bytes_each: Of a number on the wire.
        compute: Seconds of a rank's forward and backward pass.
        buckets: In how many parts gradients leave while backward still runs; 1 where
            they leave after it.
        slots: Numbers of state for each parameter, of the GSNR optimizer.
        plain_slots: The same of the plain optimizer.
        sums: Short allreduces of a sharded update: 2 where there are trust ratios.
    """

    parameters: int
    bytes_each: int = 4
    compute: float = 0.0
    buckets: int = 1
    slots: int = 3
    plain_slots: int = 2
    sums: int = 2

    def __post_init__(self):
        least = {"parameters": 1, "bytes_each": 1, "buckets": 1}
        _check(self, lambda name, x: x >= least.get(name, 0), "above 0 (or 0, for some)")

    @property
    def size(self):
        """Bytes of all gradients, or of all weights."""
        return self.parameters * self.bytes_each


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of a step, by what they go into.

    Attributes:
        compute: Forward and backward pass.
        update: The processor's part of the optimizer's step.
        gradients: Exchange of gradients, as far as backward does not hide it.
        rest: Exchange of what follows: sums, weights, a second reduction.
    """

    compute: float
    update: float
    gradients: float
    rest: float

    @property
    def seconds(self):
        return self.compute + self.update + self.gradients + self.rest


# ---- collectives ------------------------------------------------------------------


def ring_pass(size, cluster):
    """Seconds to send each rank's k-th of `size` bytes round all k ranks.

    An allgather; or, with sums, a reduce-scatter. All links are busy in each of its
    k − 1 rounds, so the slowest sets the pace; one rank of each host uses its link.
    """
    ranks = cluster.ranks
    links = [cluster.within] if cluster.hosts == 1 else [cluster.between]
    if cluster.hosts > 1 and cluster.ranks_per_host > 1:
        links.append(cluster.within)
    return (ranks - 1) * max(link.seconds(size / ranks) for link in links)


def ring_allreduce(size, cluster):
    """Seconds of a reduce-scatter and an allgather, 2(k−1)(α + size/kβ)."""
    return 2 * ring_pass(size, cluster)


def alltoall(size, cluster):
    """Seconds until each rank has a k-th of the `size` bytes of every other one.

    One message to each other rank. Those that leave a host share its link: it carries
    `ranks_per_host` times what a rank sends.
    """
    message = size / cluster.ranks
    inside = (cluster.ranks_per_host - 1) * cluster.within.seconds(message)
    outside = (cluster.ranks - cluster.ranks_per_host) * cluster.between.seconds(
        message * cluster.ranks_per_host
    )
    return max(inside, outside)


def _apart(cluster):
    """The ranks of one host, and one rank of each host, as clusters of their own.

    All ranks of a host talk to their like at once, so that each has its share of the
    link.
    """
    one = dataclasses.replace(cluster, hosts=1)
    share = dataclasses.replace(
        cluster.between, bandwidth=cluster.between.bandwidth / cluster.ranks_per_host
    )
    return one, dataclasses.replace(cluster, ranks_per_host=1, between=share)


def alltoall_by_host(size, m2, cluster):
    """Seconds of an alltoall within each host, then of what it came to across hosts.

    Args:
        size: Bytes of a rank's gradient.
        m2: Bytes of m2 within a host, which travel as well; 0 for none.
        cluster: `Cluster`.
    """
    host, across = _apart(cluster)
    part = (size + m2) / cluster.ranks_per_host
    return alltoall(size, host) + alltoall(part, across)


# ---- a step -----------------------------------------------------------------------


def exposed(seconds, compute, buckets):
    """What backward does not hide of an exchange that takes `seconds(share)`.

    The last bucket leaves when backward has ended, the others while it runs.

    Args:
        seconds: Function of the share of the bytes, in (0, 1].
        compute: Seconds of forward and backward.
        buckets: How many of equal size.
    """
    one = seconds(1 / buckets)
    window = compute * _BACKWARD_SHARE * (1 - 1 / buckets)
    return max(one, one * buckets - window)


def step(scheme, job, cluster, costs=Costs()):
    """The parts of a step's time.

    Args:
        scheme: One of `SCHEMES`.
        job: `Job`.
        cluster: `Cluster`.
        costs: `Costs` of a rank's processor.

    Returns:
        `Step`.

    Raises:
        ValueError: The scheme is unknown.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {SCHEMES}. Received: {scheme!r}")
    n, k = job.size, cluster.ranks
    if k == 1:
        update = _update(scheme, job, cluster, costs)
        return StepTime(compute=job.compute, update=update, gradients=0.0, rest=0.0)
    # Sent and received by each rank in one half of an allreduce, or one alltoall.
    handled = n * (k - 1) / k * costs.per_byte

    def reduction(share):
        whole = ring_allreduce(share * n, cluster)
        return costs.launch + whole + 2 * share * handled

    def exchange(share):
        if scheme == FLAT or not goes_by_host(cluster):
            return costs.launch + alltoall(share * n, cluster) + share * handled
        m2 = share * _m2_bytes(job, cluster)
        seconds = alltoall_by_host(share * n, m2, cluster)
        across = m2 / cluster.ranks_per_host * costs.per_byte
        return 2 * costs.launch + seconds + share * handled + across

    if scheme in (PLAIN, WHOLE):
        # Means leave whole, and their deviations cannot leave before them.
        buckets = job.buckets if scheme == PLAIN else 1
        gradients = exposed(reduction, job.compute, buckets)
        rest = 0.0 if scheme == PLAIN else reduction(1.0)
    else:
        gradients = exposed(exchange, job.compute, job.buckets)
        # As good as empty: their latency is what they cost.
        short = costs.launch + ring_allreduce(0.0, cluster)
        rest = costs.launch + ring_pass(n, cluster) + handled + job.sums * short
    update = _update(scheme, job, cluster, costs)
    return StepTime(compute=job.compute, update=update, gradients=gradients, rest=rest)


def _hosts_are_samples(cluster):
    """Below, the ranks are samples, and their m2 travels with a host's mean."""
    return cluster.ranks_per_host > 1 and cluster.hosts >= SOUND_SAMPLES["paper"]


def goes_by_host(cluster):
    """Whether slices take their way through hosts."""
    by_host = _hosts_are_samples(cluster)
    return by_host_pays(cluster.hosts, cluster.ranks_per_host, by_host)


def _m2_bytes(job, cluster):
    """Bytes of m2, float32, that goes by host with the means."""
    return 0 if _hosts_are_samples(cluster) else 4 * job.parameters


def _update(scheme, job, cluster, costs):
    each = {PLAIN: costs.plain, WHOLE: costs.whole}.get(
        scheme, costs.slices + costs.slice / cluster.ranks
    )
    return costs.fixed + job.parameters * each


def efficiency(scheme, job, cluster, costs=Costs()):
    """Examples per second of a rank, as a share of those of a rank alone.

    Alone it takes the plain optimizer's step, with nothing to exchange.
    """
    alone = job.compute + _update(PLAIN, job, cluster, costs)
    return alone / step(scheme, job, cluster, costs).seconds


def samples(cluster):
    """k, the samples of the gradient in an update of slices without accumulation."""
    return cluster.hosts if _hosts_are_samples(cluster) else cluster.ranks


def memory(scheme, job, ranks):
    """Bytes on a worker: weights, gradients, state, and what an exchange holds at once.

    Activations and what the framework keeps for itself come on top.
    """
    state = job.parameters * job.slots * 4
    if scheme == PLAIN:
        # The reduced gradients.
        state, held = job.parameters * job.plain_slots * 4, job.size
    elif scheme == WHOLE:
        # Means, deviations, and what either is reduced to.
        held = 3 * job.size
    else:
        # Samples, statistics and new weights take the place of gradients that are
        # gone: measured at less than all new weights.
        state, held = state / ranks, job.size
    return 2 * job.size + state + held


def latency_bound_from(job, cluster):
    """From how many ranks on a message of alltoall takes longer to start than to send.

    A message has size/k bytes, and the ranks of a host share its link, or what they
    have goes by host in messages r times as large, r times as rare:
    k > size · ranks_per_host / (αβ). `None` where latency is 0.
    """
    link = cluster.between
    if link.latency == 0:
        return None
    share = cluster.ranks_per_host / (link.latency * link.bandwidth)
    return math.floor(job.size * share) + 1
