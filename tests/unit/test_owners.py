"""When slices are worth it: what ranks that share a host's link send through it."""

import types

import pytest

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
    assert found.route.hosts == 1


@pytest.mark.parametrize("hosts", [[2] * 8, [3, 3], [8] * 16])
def test_hosts_of_several_ranks_exchange_by_host(monkeypatch, hosts):
    found = communicator(monkeypatch, hosts)
    assert found.owners_pay
    assert found.route.hosts == len(hosts)


@pytest.mark.parametrize(
    "hosts, pays", [([2, 1], True), ([3, 1, 1], True), ([4, 1], False), ([8, 4], False)]
)
def test_unlike_hosts_decide_alike(monkeypatch, hosts, pays):
    for rank in range(sum(hosts)):
        found = communicator(monkeypatch, hosts, rank)
        assert found.owners_pay == pays
        assert found.route.hosts == 1


@pytest.mark.parametrize("hosts, pays", [([2, 2], True), ([4, 4], False)])
def test_in_an_elastic_job_nobody_is_asked(monkeypatch, hosts, pays):
    monkeypatch.setenv("HOROVOD_ELASTIC", "1")
    found = communicator(monkeypatch, hosts)
    assert found.owners_pay == pays
    assert found.route.hosts == 1
