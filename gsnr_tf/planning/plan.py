"""What to expect of 2 to 1,024 workers, in numbers and in sentences."""

import dataclasses

from gsnr_tf.planning import cost

LARGEST = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What one number of workers gives; dicts by scheme.

    Attributes:
        workers: How many.
        hosts: On how many hosts.
        steps: `cost.Step`.
        efficiency: Examples per second of a worker, relative to one alone.
        memory: Bytes of a worker.
    """

    workers: int
    hosts: int
    steps: dict
    efficiency: dict
    memory: dict


def clusters(cluster):
    """Ever larger ones: 2, 4, … ranks on one host until it is full, then more hosts."""
    per_host = cluster.ranks_per_host
    ranks = 2
    while ranks < per_host:
        yield dataclasses.replace(cluster, hosts=1, ranks_per_host=ranks)
        ranks *= 2
    hosts = 2 if per_host == 1 else 1
    while hosts * per_host <= LARGEST:
        yield dataclasses.replace(cluster, hosts=hosts)
        hosts *= 2


def _schemes(cluster):
    """What can be done there. A sample for each host is too little on one host."""
    several = cluster.hosts > 1 and cluster.ranks_per_host > 1
    return [s for s in cost.SCHEMES if s != cost.HOSTS or several]


def rows(job, cluster, costs):
    """A `Row` for each of `clusters(cluster)`."""
    return [
        Row(
            workers=one.ranks,
            hosts=one.hosts,
            steps={s: cost.step(s, job, one, costs) for s in _schemes(one)},
            efficiency={s: cost.efficiency(s, job, one, costs) for s in _schemes(one)},
            memory={s: cost.memory(s, job, one.ranks) for s in cost.SCHEMES[:3]},
        )
        for one in clusters(cluster)
    ]


def advice(table, job, cluster):
    """Sentences about what `rows` found."""
    largest = dataclasses.replace(cluster, hosts=table[-1].hosts)
    return [
        *_latency(job, cluster),
        *_host_link(table, largest),
        *_last(table[-1], job, largest),
    ]


def _latency(job, cluster):
    bound = cost.latency_bound_from(job, cluster)
    if bound is None or bound > LARGEST:
        yield (
            "Alltoall's messages take longer to send than to start, up to "
            f"{LARGEST:,} workers: bandwidth binds them, not latency."
        )
        return
    yield (
        f"From {bound:,} workers on a message of alltoall, "
        f"{job.size / bound / 1e3:,.3g} kB by then, takes longer to start than to "
        "send: latency binds it. What helps today is to exchange more rarely "
        "(`gradient_accumulation_steps`), or fewer and larger workers."
    )


def _host_link(table, cluster):
    per_host = cluster.ranks_per_host
    if per_host == 1:
        return
    yield (
        f"The {per_host} ranks of a host share its link, and alltoall sends {per_host} "
        "times through it what the first half of an allreduce sends. Reducing within a "
        f"host first would send it once, in 1/{per_host} of the messages: the column "
        '"by host". gsnr_tf does not do that yet. With it each host, not each rank, '
        "would be a sample of the gradient: k would be the number of hosts, "
        f"{cost.samples(cost.HOSTS, cluster):,} in place of "
        f"{cost.samples(cost.SLICES, cluster):,} on the most, and the multipliers "
        "others."
    )
    dearer = [
        row.workers
        for row in table
        if row.steps[cost.SLICES].seconds > row.steps[cost.WHOLE].seconds
    ]
    if dearer:
        yield (
            f'Today sharding="none" is the quicker form of GSNR from {dearer[0]:,} '
            f"to {dearer[-1]:,} workers (\"auto\" takes it where more than 3 ranks share "
            "a host), and `gradient_accumulation_steps` makes any exchange rarer."
        )


def _last(row, job, cluster):
    plain, slices = row.steps[cost.PLAIN].seconds, row.steps[cost.SLICES].seconds
    short = job.sums * cost.ring_allreduce(0.0, cluster)
    yield (
        f'At {row.workers:,} workers a step with sharding="slices" takes '
        f"{slices / plain:.2f} times as long as with a plain allreduce. Its short sums "
        f"({job.sums} an update, round a ring as Gloo sends them) are "
        f"{1e3 * short:.3g} ms of that, all of it latency."
    )
