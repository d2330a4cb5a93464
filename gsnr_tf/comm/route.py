"""Among whom parts travel to their owners: all ranks at once, or host by host."""

from typing import NamedTuple

import numpy as np


# From so many ranks on mean and spread are fewer bytes than a gradient for each.
_MANY_ON_A_HOST = 3


def by_host_pays(hosts, ranks_per_host, host_is_sample):
    """Whether a host's link carries less by host than if all ranks exchange at once.

    By host one gradient leaves it, and one spread unless the host is a sample; at once
    a gradient for each of its ranks does.
    """
    return hosts > 1 and (host_is_sample or ranks_per_host >= _MANY_ON_A_HOST)


class Level(NamedTuple):
    """Ranks that exchange among themselves.

    Attributes:
        ranks: The ranks, ascending.
        place: Where among them this rank is.
    """

    ranks: list
    place: int


class Route:
    """One exchange after another, until each rank has what is for its part.

    The first divides all parts among its ranks in order, each further one what its
    ranks then have: with ranks (l, h), of place l on host h, of H hosts, part l·H + h
    belongs to rank (l, h).

    Args:
        levels: List of `Level`.
        owners: The owner of each part, in order.

    Attributes:
        part: Number of this rank's part.
    """

    def __init__(self, levels, owners, rank):
        self.levels = levels
        self.owners = owners
        self.part = owners.index(rank)

    @classmethod
    def flat(cls, rank, ranks):
        """One exchange among all: rank i owns part i."""
        everyone = list(range(ranks))
        return cls([Level(everyone, rank)], everyone, rank)

    @classmethod
    def by_host(cls, rank, places):
        """Within each host, then across hosts among ranks of like place.

        What the ranks of a host have for another one is joined before it leaves, and
        goes through their link once, not once for each of them.

        Args:
            rank: This rank.
            places: For each rank the number of its host and its place on it; all
                hosts have as many.

        Returns:
            A `Route`, or `None` where ranks do not ascend with either number.
        """
        ranks = {place: number for number, place in enumerate(places)}
        hosts, seats = (sorted(set(numbers)) for numbers in zip(*places))
        grid = np.array([[ranks[host, seat] for host in hosts] for seat in seats])
        if np.any(np.diff(grid, axis=0) < 0) or np.any(np.diff(grid, axis=1) < 0):
            return None
        (seat,), (host,) = np.nonzero(grid == rank)
        within, across = grid[:, host].tolist(), grid[seat].tolist()
        levels = [Level(within, int(seat)), Level(across, int(host))]
        return cls(levels, grid.reshape(-1).tolist(), rank)

    @property
    def hosts(self):
        """How many hosts parts go by; 1 where all ranks exchange at once."""
        return len(self.levels[1].ranks) if len(self.levels) > 1 else 1

    def cuts(self, bounds, part):
        """Where the parts begin and end that each level divides among its ranks.

        Args:
            bounds: Where each part begins, and, last, where the last one ends.
            part: Whose owner is asked about.

        Returns:
            For each level a list, one longer than its ranks.
        """
        found, first, width = [], 0, len(bounds) - 1
        for level in self.levels:
            step = width // len(level.ranks)
            found.append(bounds[first : first + width + 1 : step])
            first, width = part // step * step, step
        return found
