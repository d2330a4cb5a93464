"""By which ways parts get to their owners, played through without a network."""

import itertools

import numpy as np
import pytest

from gsnr_tf.comm.exchange_plan import ExchangePlan

pytestmark = pytest.mark.smoke

HOSTS, SEATS = 3, 2
BY_SLOT = [(rank // SEATS, rank % SEATS) for rank in range(HOSTS * SEATS)]
BY_NODE = [(rank % HOSTS, rank // HOSTS) for rank in range(HOSTS * SEATS)]


def travel(plans, bounds, vectors):
    """What each rank holds in the end: the rows it added up, one exchange at a time."""
    held = list(vectors)
    stages = range(len(plans[0].stages))
    for number in stages:
        received = []
        for rank, plan in enumerate(plans):
            stage = plan.stages[number]
            assert stage.ranks[stage.position] == rank
            rows = []
            for sender in stage.ranks:
                cuts = plans[sender].cuts(bounds, plans[sender].shard)[number]
                first, last = cuts[stage.position : stage.position + 2]
                rows.append(held[sender][first - cuts[0] : last - cuts[0]])
            received.append(np.sum(rows, axis=0))
        held = received
    return held


@pytest.mark.parametrize("places", [BY_SLOT, BY_NODE])
@pytest.mark.parametrize("by_host", [False, True])
def test_each_owner_rank_gets_its_shard_from_all(places, by_host):
    ranks = len(places)
    if by_host:
        plans = [ExchangePlan.by_host(rank, places) for rank in range(ranks)]
    else:
        plans = [ExchangePlan.flat(rank, ranks) for rank in range(ranks)]
    bounds = [0, 3, 3, 7, 8, 12, 15]
    vectors = np.random.default_rng(0).normal(size=[ranks, bounds[-1]])
    for plan, own in zip(plans, travel(plans, bounds, vectors)):
        first, last = bounds[plan.shard : plan.shard + 2]
        np.testing.assert_allclose(own, vectors[:, first:last].sum(0))
    assert [r.owner_ranks.index(rank) for rank, r in enumerate(plans)] == [
        plan.shard for plan in plans
    ]


@pytest.mark.parametrize("places", [BY_SLOT, BY_NODE])
def test_only_like_places_talk_across_hosts(places):
    for rank, (host, seat) in enumerate(places):
        within, across = ExchangePlan.by_host(rank, places).stages
        assert {places[other][0] for other in within.ranks} == {host}
        assert {places[other][1] for other in across.ranks} == {seat}


def test_ranks_in_no_order_exchange_at_once():
    disorder = [(0, 0), (1, 0), (1, 1), (0, 1)]
    assert ExchangePlan.by_host(0, disorder) is None
    orders = itertools.permutations([(0, 0), (0, 1), (1, 0), (1, 1)])
    found = [ExchangePlan.by_host(0, list(order)) for order in orders]
    assert sum(plan is not None for plan in found) == 2
