"""The cost model: limits, closed forms, a simulation, and what must always hold."""

import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gsnr_tf.planning import cost, plan

GIGABIT = 1e9 / 8
NOTHING = cost.Link(latency=0.0, bandwidth=float("inf"))


def flat(ranks, latency=0.0, bandwidth=GIGABIT):
    """A cluster of one rank a host."""
    link = cost.Link(latency=latency, bandwidth=bandwidth)
    return cost.Cluster(hosts=ranks, ranks_per_host=1, between=link, within=NOTHING)


def test_bytes_of_eight_million_parameters_at_one_gigabit():
    """32 MB by 4 ranks: three quarters of them, and of an allreduce twice that."""
    size, cluster = 32e6, flat(4)
    assert cost.alltoall(size, cluster) == pytest.approx(0.192)
    assert cost.ring_pass(size, cluster) == pytest.approx(0.192)
    assert cost.ring_allreduce(size, cluster) == pytest.approx(0.384)


def test_latency_counts_messages():
    cluster = flat(5, latency=0.001, bandwidth=float("inf"))
    assert cost.alltoall(1e6, cluster) == pytest.approx(0.004)
    assert cost.ring_allreduce(1e6, cluster) == pytest.approx(0.008)


def ring_by_rounds(size, hosts, per_host, between, within):
    """An allgather, message by message: each rank waits for its left neighbour."""
    ranks = hosts * per_host
    ready = [0.0] * ranks
    for _ in range(ranks - 1):
        arrival = []
        for rank in range(ranks):
            left = (rank - 1) % ranks
            same = left // per_host == rank // per_host
            link = within if same else between
            # The neighbour sends when it has the part, and when this rank is ready.
            start = max(ready[left], ready[rank])
            arrival.append(start + link.latency + size / ranks / link.bandwidth)
        ready = arrival
    return max(ready)


@pytest.mark.parametrize("hosts, per_host", [(2, 1), (5, 1), (1, 4), (3, 4), (2, 2)])
def test_ring_agrees_with_a_simulation_of_its_messages(hosts, per_host):
    between = cost.Link(latency=30e-6, bandwidth=1e9)
    within = cost.Link(latency=5e-6, bandwidth=2e10)
    cluster = cost.Cluster(hosts=hosts, ranks_per_host=per_host, between=between, within=within)
    expected = ring_by_rounds(8e6, hosts, per_host, between, within)
    assert cost.ring_pass(8e6, cluster) == pytest.approx(expected, rel=0.05)


def test_alltoall_fills_the_link_that_a_host_shares():
    """What leaves a host: 8 ranks, to each of the 24 elsewhere a 32nd."""
    link = cost.Link(latency=0.0, bandwidth=1e9)
    cluster = cost.Cluster(hosts=4, ranks_per_host=8, between=link, within=NOTHING)
    leaves = 8 * 24 / 32 * 1e8
    assert cost.alltoall(1e8, cluster) == pytest.approx(leaves / 1e9)
    # Joined within the host, one gradient leaves, but for the own host's quarter.
    assert cost.alltoall_by_host(1e8, 0, cluster) == pytest.approx(0.75e8 / 1e9)
    assert cost.alltoall_by_host(1e8, 1e8, cluster) == pytest.approx(1.5e8 / 1e9)


def test_slices_cost_what_a_plain_allreduce_costs_but_for_sums():
    job = cost.Job(parameters=8_000_000, sums=0)
    cluster = flat(8)
    plain, slices = (cost.step(s, job, cluster).seconds for s in ("plain", "slices"))
    assert slices == pytest.approx(plain)
    assert cost.step("none", job, cluster).seconds == pytest.approx(2 * plain)


def test_sums_cost_latency_alone():
    cluster = flat(8, latency=1e-4)
    without, with_two = (
        cost.step("slices", cost.Job(parameters=10**6, sums=sums), cluster).seconds
        for sums in (0, 2)
    )
    assert with_two - without == pytest.approx(2 * 2 * 7 * 1e-4)


def test_alone_there_is_nothing_to_exchange():
    job = cost.Job(parameters=1000, compute=0.5)
    costs = cost.Costs(plain=1e-6, whole=2e-6, slices=3e-6, slice=4e-6, launch=9, per_byte=9)
    parts = [cost.step(scheme, job, flat(1), costs) for scheme in cost.SCHEMES]
    assert [part.seconds for part in parts] == pytest.approx([0.501, 0.502, 0.507, 0.507])
    assert cost.efficiency("plain", job, flat(1), costs) == 1.0


def test_over_a_perfect_network_only_processors_count():
    job = cost.Job(parameters=1000, compute=0.5)
    costs = cost.Costs(plain=1e-6, whole=2e-6, slices=3e-6, slice=4e-6)
    cluster = flat(4, bandwidth=float("inf"))
    parts = [cost.step(scheme, job, cluster, costs) for scheme in cost.SCHEMES]
    assert [part.seconds for part in parts] == pytest.approx([0.501, 0.502, 0.504, 0.504])


@pytest.mark.parametrize(
    "compute, buckets, expected",
    [
        (0.0, 1, 1.0),  # nothing to hide behind
        (9.0, 1, 1.0),  # all leave at the end
        (0.0, 4, 1.0),
        (9.0, 4, 0.25),  # only the last bucket is left
        (0.6, 4, 0.7),  # three quarters of backward, 0.4 s, hide 0.3 s
    ],
)
def test_backward_hides_all_but_the_last_bucket(compute, buckets, expected):
    assert cost.exposed(lambda share: share, compute, buckets) == pytest.approx(expected)


def test_state_is_shared_out_and_weights_are_not():
    job = cost.Job(parameters=1000)
    assert cost.memory("plain", job, 8) == 4000 * (2 + 2 + 1)
    assert cost.memory("none", job, 8) == 4000 * (2 + 3 + 3)
    assert cost.memory("slices", job, 8) == 4000 * (2 + 3 / 8 + 1)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: cost.Link(latency=-1.0, bandwidth=1.0), "latency must be 0 or more"),
        (lambda: cost.Link(latency=0.0, bandwidth=0.0), "bandwidth must be above 0"),
        (lambda: flat(0), "hosts must be a whole number"),
        (lambda: flat(2.5), "hosts must be a whole number"),
        (lambda: cost.Job(parameters=0), "parameters must be"),
        (lambda: cost.Job(parameters=1, buckets=0), "buckets must be"),
        (lambda: cost.Costs(launch=float("nan")), "launch must be 0 or more"),
        (lambda: cost.step("ring", cost.Job(parameters=1), flat(2)), "scheme must be"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


LATENCIES = st.floats(0, 1e-2)
BANDWIDTHS = st.floats(1e6, 1e12)
LINKS = st.builds(cost.Link, latency=LATENCIES, bandwidth=BANDWIDTHS)
CLUSTERS = st.builds(
    cost.Cluster,
    hosts=st.integers(1, 128),
    ranks_per_host=st.integers(1, 8),
    between=LINKS,
    within=LINKS,
)
JOBS = st.builds(
    cost.Job,
    parameters=st.integers(1, 10**9),
    compute=st.just(0.0) | st.floats(1e-9, 10),
    buckets=st.integers(1, 20),
)
SCHEMES = st.sampled_from(cost.SCHEMES)


@given(SCHEMES, JOBS, CLUSTERS, st.floats(1, 100))
def test_faster_links_never_slow_a_step_down(scheme, job, cluster, factor):
    faster = dataclasses.replace(
        cluster,
        between=cost.Link(
            latency=cluster.between.latency / factor,
            bandwidth=cluster.between.bandwidth * factor,
        ),
    )
    now, then = (cost.step(scheme, job, c).seconds for c in (cluster, faster))
    assert then <= now * (1 + 1e-9)


@given(SCHEMES, JOBS, CLUSTERS)
def test_more_parameters_never_speed_a_step_up(scheme, job, cluster):
    more = dataclasses.replace(job, parameters=2 * job.parameters)
    now, then = (cost.step(scheme, j, cluster).seconds for j in (job, more))
    assert now <= then * (1 + 1e-9)


@given(SCHEMES, JOBS, CLUSTERS)
def test_no_step_is_shorter_than_its_computation(scheme, job, cluster):
    assume(job.compute > 0)
    parts = cost.step(scheme, job, cluster)
    assert parts.seconds >= job.compute
    assert min(dataclasses.astuple(parts)) >= 0
    assert 0 < cost.efficiency(scheme, job, cluster) <= 1


@given(JOBS, CLUSTERS)
def test_with_one_rank_a_host_slices_go_at_once(job, cluster):
    cluster = dataclasses.replace(cluster, ranks_per_host=1)
    slices, flat = (cost.step(s, job, cluster).seconds for s in ("slices", "flat"))
    assert slices == pytest.approx(flat)


def test_many_hosts_of_many_ranks_pay_what_a_plain_allreduce_costs():
    """With links within hosts that cost nothing, and no latency."""
    link = cost.Link(latency=0.0, bandwidth=1e9)
    cluster = cost.Cluster(hosts=64, ranks_per_host=8, between=link, within=NOTHING)
    job = cost.Job(parameters=10**8, sums=0)
    plain, slices, flat = (
        cost.step(s, job, cluster).gradients + cost.step(s, job, cluster).rest
        for s in ("plain", "slices", "flat")
    )
    assert slices == pytest.approx(plain, rel=0.01)
    assert flat == pytest.approx(4.5 * plain, rel=0.02)


@given(JOBS, CLUSTERS)
def test_a_second_reduction_is_never_free(job, cluster):
    job = dataclasses.replace(job, buckets=1)
    plain, whole = (cost.step(s, job, cluster).seconds for s in ("plain", "none"))
    assert whole >= plain


@given(JOBS, CLUSTERS)
def test_from_there_on_a_message_takes_longer_to_start_than_to_send(job, cluster):
    link = cluster.between
    assume(link.latency > 1e-9)
    bound = cost.latency_bound_from(job, cluster)

    def sending(ranks):
        return job.size / ranks * cluster.ranks_per_host / link.bandwidth

    assert sending(bound) <= link.latency * (1 + 1e-9)
    assert bound == 1 or sending(bound - 1) >= link.latency * (1 - 1e-9)


def test_without_latency_nothing_is_bound_by_it():
    assert cost.latency_bound_from(cost.Job(parameters=1), flat(2)) is None


@pytest.mark.parametrize(
    "hosts, per_host, k", [(1, 16, 16), (16, 1, 16), (7, 4, 28), (8, 4, 8), (8, 2, 8)]
)
def test_hosts_are_samples_where_there_are_eight(hosts, per_host, k):
    cluster = cost.Cluster(hosts=hosts, ranks_per_host=per_host, between=NOTHING, within=NOTHING)
    assert cost.samples(cluster) == k


@pytest.mark.parametrize(
    "per_host, first, hosts",
    [
        (1, [2, 4, 8], [2, 4, 8]),
        (8, [2, 4, 8, 16, 32], [1, 1, 1, 2, 4]),
        (3, [2, 3, 6], [1, 1, 2]),
    ],
)
def test_hosts_are_filled_before_there_are_more(per_host, first, hosts):
    cluster = cost.Cluster(hosts=1, ranks_per_host=per_host, between=NOTHING, within=NOTHING)
    found = list(plan.clusters(cluster))
    assert [one.ranks for one in found][: len(first)] == first
    assert [one.hosts for one in found][: len(first)] == hosts
    assert found[-1].ranks <= 1024 < 2 * found[-1].ranks
