"""By which ways parts get to their owners, played through without a network."""

import itertools

import numpy as np
import pytest

from gsnr_tf.comm.route import Route

pytestmark = pytest.mark.smoke

HOSTS, SEATS = 3, 2
BY_SLOT = [(rank // SEATS, rank % SEATS) for rank in range(HOSTS * SEATS)]
BY_NODE = [(rank % HOSTS, rank // HOSTS) for rank in range(HOSTS * SEATS)]


def travel(routes, bounds, vectors):
    """What each rank holds in the end: the rows it added up, one exchange at a time."""
    held = list(vectors)
    levels = range(len(routes[0].levels))
    for number in levels:
        received = []
        for rank, route in enumerate(routes):
            level = route.levels[number]
            assert level.ranks[level.place] == rank
            rows = []
            for sender in level.ranks:
                cuts = routes[sender].cuts(bounds, routes[sender].part)[number]
                first, last = cuts[level.place : level.place + 2]
                rows.append(held[sender][first - cuts[0] : last - cuts[0]])
            received.append(np.sum(rows, axis=0))
        held = received
    return held


@pytest.mark.parametrize("places", [BY_SLOT, BY_NODE])
@pytest.mark.parametrize("by_host", [False, True])
def test_each_owner_gets_its_part_from_all(places, by_host):
    ranks = len(places)
    if by_host:
        routes = [Route.by_host(rank, places) for rank in range(ranks)]
    else:
        routes = [Route.flat(rank, ranks) for rank in range(ranks)]
    bounds = [0, 3, 3, 7, 8, 12, 15]
    vectors = np.random.default_rng(0).normal(size=[ranks, bounds[-1]])
    for route, own in zip(routes, travel(routes, bounds, vectors)):
        first, last = bounds[route.part : route.part + 2]
        np.testing.assert_allclose(own, vectors[:, first:last].sum(0))
    assert [r.owners.index(rank) for rank, r in enumerate(routes)] == [
        route.part for route in routes
    ]


@pytest.mark.parametrize("places", [BY_SLOT, BY_NODE])
def test_only_like_places_talk_across_hosts(places):
    for rank, (host, seat) in enumerate(places):
        within, across = Route.by_host(rank, places).levels
        assert {places[other][0] for other in within.ranks} == {host}
        assert {places[other][1] for other in across.ranks} == {seat}


def test_ranks_in_no_order_exchange_at_once():
    disorder = [(0, 0), (1, 0), (1, 1), (0, 1)]
    assert Route.by_host(0, disorder) is None
    orders = itertools.permutations([(0, 0), (0, 1), (1, 0), (1, 1)])
    found = [Route.by_host(0, list(order)) for order in orders]
    assert sum(route is not None for route in found) == 2
