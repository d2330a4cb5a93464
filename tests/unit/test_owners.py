"""When slices are worth it: what ranks that share a host's link send through it."""

import types

import pytest

import gsnr_tf
from gsnr_tf.comm import horovod


def communicator(monkeypatch, ranks_of_hosts, rank=0):
    """That of a rank on the first of hosts with so many ranks each."""
    places = [(host, seat) for host, n in enumerate(ranks_of_hosts) for seat in range(n)]
    # As Horovod counts: hosts that have a rank of this place.
    cross = sum(seat == places[rank][1] for _, seat in places)
    hvd = types.SimpleNamespace(
        rank=lambda: rank,
        size=lambda: len(places),
        cross_size=lambda: cross,
        cross_rank=lambda: places[rank][0],
        local_size=lambda: ranks_of_hosts[places[rank][0]],
        local_rank=lambda: places[rank][1],
        is_homogeneous=lambda: len(set(ranks_of_hosts)) == 1,
        allgather_object=lambda value, name: places,
    )
    monkeypatch.setattr(horovod, "load", lambda: hvd)
    return horovod.HorovodCommunicator()


@pytest.mark.parametrize("hosts", [[2], [64], [1] * 8])
def test_ranks_that_share_no_link_exchange_at_once(monkeypatch, hosts):
    found = communicator(monkeypatch, hosts)
    assert found.owners_pay
    assert found.hosts == 1


@pytest.mark.parametrize("hosts", [[2] * 8, [3, 3], [8] * 16])
def test_hosts_of_several_ranks_may_exchange_by_host(monkeypatch, hosts):
    found = communicator(monkeypatch, hosts)
    assert found.owners_pay
    assert found.hosts == len(hosts)


@pytest.mark.parametrize(
    "hosts, pays", [([2, 1], True), ([3, 1, 1], True), ([4, 1], False), ([8, 4], False)]
)
def test_unlike_hosts_decide_alike(monkeypatch, hosts, pays):
    for rank in range(sum(hosts)):
        found = communicator(monkeypatch, hosts, rank)
        assert found.owners_pay == pays
        assert found.hosts == 1


@pytest.mark.parametrize("hosts, pays", [([2, 2], True), ([4, 4], False)])
def test_in_an_elastic_job_nobody_is_asked(monkeypatch, hosts, pays):
    monkeypatch.setenv("HOROVOD_ELASTIC", "1")
    found = communicator(monkeypatch, hosts)
    assert found.owners_pay == pays
    assert found.hosts == 1


def route(monkeypatch, hosts, **arguments):
    """Over how many hosts slices go, and what a sample is."""
    optimizer = gsnr_tf.GSNRSGD(0.1, gradient_accumulation_steps=2, **arguments)
    optimizer._comm = communicator(monkeypatch, hosts)
    optimizer._choose_sample()
    optimizer.check_workers()
    return optimizer._comm.route.hosts, optimizer._one_is


@pytest.mark.parametrize(
    "hosts, arguments, expected",
    [
        ([2, 2], {}, (1, "micro_batch")),
        ([2, 2], {"sample": "host"}, (2, "host")),
        ([3, 3], {}, (2, "micro_batch")),
        ([4, 4], {}, (2, "worker")),
        ([4, 4], {"sharding": "none"}, (1, "worker")),
        ([2] * 7, {}, (1, "worker")),
        ([2] * 8, {}, (8, "host")),
        ([8] * 8, {"sample": "worker"}, (8, "worker")),
        ([2] * 8, {"sample": "worker"}, (1, "worker")),
        ([3, 1], {}, (1, "micro_batch")),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_slices_go_by_host_where_its_link_carries_less(
    monkeypatch, hosts, arguments, expected
):
    assert route(monkeypatch, hosts, **arguments) == expected


@pytest.mark.parametrize("hosts", [[4], [1] * 4, [2, 1]])
def test_a_host_is_no_sample_where_slices_cannot_go_by_host(monkeypatch, hosts):
    with pytest.raises(ValueError, match="A host is a sample only where"):
        route(monkeypatch, hosts, sample="host")
