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
        steps: `cost.StepTime`.
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
    """What can be compared there."""
    return [s for s in cost.SCHEMES if s != cost.FLAT or cost.goes_by_host(cluster)]


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
        *_host_link(table[-1], largest),
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
        f"send: latency binds it. {_fewer_messages(cluster)}"
    )


def _fewer_messages(cluster):
    rarer = "exchange more rarely (`gradient_accumulation_steps`)"
    if cluster.ranks_per_host == 1:
        return f"What helps is to {rarer}, or fewer and larger workers."
    return (
        f"Going by host, slices send 1/{cluster.ranks_per_host} as many messages across "
        f"hosts as all ranks at once would. What helps further is to {rarer}."
    )


def _host_link(row, cluster):
    per_host = cluster.ranks_per_host
    if per_host == 1 or cost.FLAT not in row.steps:
        return
    slices, flat = row.steps[cost.SLICES].seconds, row.steps[cost.FLAT].seconds
    yield (
        f"The {per_host} ranks of a host share its link. Slices go by host there: ranks "
        "of a host join their samples before these leave it. At "
        f"{row.workers:,} workers that takes {slices / flat:.2f} times as long as if "
        'all ranks exchanged at once (the column "flat"). Below 8 hosts each rank is '
        "still a sample, and m2 within a host travels as well; from 8 on a host "
        f"is one (k = {cost.samples(cluster):,} here), unless `sample` says otherwise."
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
