"""What a sample is, and when shards are worth it for ranks that share a host's link."""

import types

import pytest

from gsnr_tf._small_models import SMALL, SMALL_TOGETHER
from gsnr_tf.comm import horovod
from gsnr_tf.optimizers import sampling
from gsnr_tf.optimizers.sampling import Wishes, Workers

# Elements of a model that is not small.
MANY = SMALL + 1


def communicator(monkeypatch, ranks_of_hosts, rank=0):
    """That of a rank on the first of hosts with so many ranks each."""
    places = [(host, local) for host, n in enumerate(ranks_of_hosts) for local in range(n)]
    # As Horovod counts: hosts that have a rank of this place.
    cross = sum(local == places[rank][1] for _, local in places)
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
    assert found.sharding_pays
    assert found.hosts == 1


@pytest.mark.parametrize("hosts", [[2] * 8, [3, 3], [8] * 16])
def test_hosts_of_several_ranks_may_exchange_by_host(monkeypatch, hosts):
    found = communicator(monkeypatch, hosts)
    assert found.sharding_pays
    assert found.hosts == len(hosts)


@pytest.mark.parametrize(
    "hosts, pays", [([2, 1], True), ([3, 1, 1], True), ([4, 1], False), ([8, 4], False)]
)
def test_unlike_hosts_decide_alike(monkeypatch, hosts, pays):
    for rank in range(sum(hosts)):
        found = communicator(monkeypatch, hosts, rank)
        assert found.sharding_pays == pays
        assert found.hosts == 1


@pytest.mark.parametrize("hosts, pays", [([2, 2], True), ([4, 4], False)])
def test_in_an_elastic_job_nobody_is_asked(monkeypatch, hosts, pays):
    monkeypatch.setenv("HOROVOD_ELASTIC", "1")
    found = communicator(monkeypatch, hosts)
    assert found.sharding_pays == pays
    assert found.hosts == 1


def decided(monkeypatch, hosts, **wishes):
    workers = Workers.of(communicator(monkeypatch, hosts))
    return sampling.plan(workers, Wishes(accumulation=2, **wishes), MANY)


@pytest.mark.parametrize(
    "hosts, wishes, expected",
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
def test_samples_go_by_host_where_its_link_carries_less(monkeypatch, hosts, wishes, expected):
    found = decided(monkeypatch, hosts, **wishes)
    assert (found.hosts, found.sample) == expected


@pytest.mark.parametrize("hosts", [[4], [1] * 4, [2, 1]])
def test_a_host_is_no_sample_where_samples_cannot_go_by_host(monkeypatch, hosts):
    with pytest.raises(ValueError, match="A host is a sample only where"):
        decided(monkeypatch, hosts, sample="host")


@pytest.mark.parametrize(
    "workers, wishes, samples, keeps_m2",
    [
        (Workers(1), {"accumulation": 4}, 4, True),
        (Workers(1), {"accumulation": 4, "sample": "worker"}, 1, False),
        (Workers(4), {}, 4, False),
        (Workers(4), {"varies": True}, 4, True),
        (Workers(4), {"accumulation": 3}, 12, True),
        (Workers(8), {"accumulation": 3}, 8, False),
        (Workers(8), {"accumulation": 3, "sample": "micro_batch"}, 24, True),
        (Workers(16, 8, True, True), {"accumulation": 3}, 8, False),
    ],
)
def test_samples_are_counted(workers, wishes, samples, keeps_m2):
    wishes = Wishes(**wishes)
    found = sampling.plan(workers, wishes, MANY)
    assert found.samples(wishes.accumulation) == samples
    assert found.keeps_m2 == keeps_m2


@pytest.mark.parametrize("pays", [True, False])
@pytest.mark.parametrize("sharding", ["auto", "none", "slices"])
def test_who_can_shard_does_where_it_pays_or_is_wished(sharding, pays):
    found = sampling.plan(Workers(2, 1, True, pays), Wishes(sharding=sharding), MANY)
    assert found.sharded == {"auto": pays, "none": False, "slices": True}[sharding]


RANKS, MORE_RANKS = Workers(4, 2, True, True), Workers(16, 2, True, True)


@pytest.mark.parametrize(
    "workers, wishes, elements, gathered",
    [
        (RANKS, {}, SMALL, True),
        (RANKS, {}, SMALL + 1, False),
        (MORE_RANKS, {}, SMALL_TOGETHER // 16, True),
        (MORE_RANKS, {}, SMALL_TOGETHER // 16 + 1, False),
        (RANKS, {"accumulation": 3}, 100, True),
        (RANKS, {"sharding": "none"}, 100, False),
        (RANKS, {"sharding": "slices"}, 100, False),
        (RANKS, {"sample": "host"}, 100, False),
        (RANKS, {"communication_dtype": "bfloat16"}, 100, False),
        (Workers(1, 1, True, True), {}, 100, False),
        (Workers(4, kind="StrategyCommunicator"), {}, 100, False),
    ],
)
def test_ranks_of_a_small_model_get_all_samples(workers, wishes, elements, gathered):
    found = sampling.plan(workers, Wishes(**wishes), elements)
    assert found.gathered == gathered
    if wishes.get("sharding") != "none":
        assert found.sharded == (not gathered and workers.number > 1 and workers.can_shard)


def test_wishes_that_cannot_be_met_say_so():
    with pytest.raises(ValueError, match="Slices need Horovod"):
        sampling.plan(Workers(1), Wishes(sharding="slices"), MANY)
    with pytest.raises(ValueError, match="another dtype than float32"):
        sampling.plan(Workers(4), Wishes(communication_dtype="bfloat16"), MANY)


def test_few_samples_warn_and_one_is_an_error():
    def said(number, **wishes):
        wishes = Wishes(**wishes)
        found = sampling.plan(Workers(number), wishes, MANY)
        return sampling.too_few(found, wishes, "GSNRSGD")

    assert "k=2 samples" in said(2)
    assert said(2, estimator="robust") is None
    assert said(8) is None
    with pytest.raises(ValueError, match="one sample"):
        said(1)
