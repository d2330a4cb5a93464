"""How samples travel to owner ranks: among all at once, or host by host."""

from typing import NamedTuple

import numpy as np

# From so many ranks on mean and m2 are fewer bytes than a gradient for each.
_MANY_ON_A_HOST = 3


def by_host_pays(hosts, ranks_per_host, host_is_sample):
    """Whether a host's link carries less by host than if all ranks exchange at once.

    By host one gradient leaves it, and one m2 unless the host is a sample; at once
    a gradient for each of its ranks does.
    """
    return hosts > 1 and (host_is_sample or ranks_per_host >= _MANY_ON_A_HOST)


class Stage(NamedTuple):
    """Ranks that exchange among themselves.

    Attributes:
        ranks: The ranks, ascending.
        position: Where among them this rank is.
    """

    ranks: list
    position: int


class ExchangePlan:
    """One exchange after another, until each rank has what is for its shard.

    The first divides all shards among its ranks in order, each further one what its
    ranks then have: with ranks (l, h), of local rank l on host h, of H hosts, shard l·H + h
    belongs to rank (l, h).

    Args:
        stages: List of `Stage`.
        owner_ranks: The owner rank of each shard, in order.
        rank: This rank.
        behind: For each stage, and each of its ranks, the ranks whose samples that one
            brings.

    Attributes:
        shard: Index of this rank's shard.
    """

    def __init__(self, stages, owner_ranks, rank, behind):
        self.stages = stages
        self.behind = behind
        self.owner_ranks = owner_ranks
        self.shard = owner_ranks.index(rank)

    @classmethod
    def flat(cls, rank, ranks):
        """One exchange among all: rank i owns shard i."""
        everyone = list(range(ranks))
        return cls([Stage(everyone, rank)], everyone, rank, [[[one] for one in everyone]])

    @classmethod
    def by_host(cls, rank, places):
        """Within each host, then across hosts among ranks of like local rank.

        What the ranks of a host have for another one is joined before it leaves, and
        goes through their link once, not once for each of them.

        Args:
            rank: This rank.
            places: For each rank the number of its host and its local rank; all
                hosts have as many.

        Returns:
            An `ExchangePlan`, or `None` where ranks do not ascend with either number.
        """
        ranks = {place: number for number, place in enumerate(places)}
        hosts, local_ranks = (sorted(set(numbers)) for numbers in zip(*places))
        grid = np.array([[ranks[host, local] for host in hosts] for local in local_ranks])
        if np.any(np.diff(grid, axis=0) < 0) or np.any(np.diff(grid, axis=1) < 0):
            return None
        (local,), (host,) = np.nonzero(grid == rank)
        within, across = grid[:, host].tolist(), grid[local].tolist()
        stages = [Stage(within, int(local)), Stage(across, int(host))]
        behind = [[[one] for one in within], grid.T.tolist()]
        return cls(stages, grid.reshape(-1).tolist(), rank, behind)

    @property
    def hosts(self):
        """How many hosts shards go by; 1 where all ranks exchange at once."""
        return len(self.stages[1].ranks) if len(self.stages) > 1 else 1

    def position(self, number, shards):
        """Which rank of stage `number` to send to, on the way to the owner of a shard.

        Args:
            number: Int.
            shards: Int, or integer tensor.
        """
        width = len(self.owner_ranks)
        for stage in self.stages[:number]:
            width //= len(stage.ranks)
        return shards % width // (width // len(self.stages[number].ranks))

    def cuts(self, bounds, shard):
        """Where the ranges begin and end that each stage divides among its ranks.

        Args:
            bounds: Where each shard begins, and, last, where the last one ends.
            shard: Index of the shard whose owner rank is asked about.

        Returns:
            For each stage a list, one longer than its ranks.
        """
        found, first, width = [], 0, len(bounds) - 1
        for stage in self.stages:
            step = width // len(stage.ranks)
            found.append(bounds[first : first + width + 1 : step])
            first, width = shard // step * step, step
        return found
