"""How many seeds and users show a difference."""

import numpy as np
import pytest

from gsnr_tf.compare import paired
from gsnr_tf.compare.power import groups_needed, seeds_needed


def test_so_many_seeds_see_it_with_four_in_five():
    seeds = seeds_needed(0.002, 0.0015)
    rng = np.random.default_rng(0)
    seen = [paired.difference(rng.normal(0.002, 0.0015, seeds)).p < 0.05 for _ in range(2000)]
    fewer = [paired.difference(rng.normal(0.002, 0.0015, seeds - 1)).p < 0.05 for _ in range(2000)]
    assert np.mean(seen) > 0.77 and np.mean(fewer) < 0.82
    assert seeds_needed(0.002, 0.003) > seeds
    assert seeds_needed(-0.002, 0.0015) == seeds


def test_what_cannot_be_seen_is_none():
    assert seeds_needed(0.0, 0.001) is None and seeds_needed(1e-6, 1.0) is None
    assert seeds_needed(0.0, 0.0) is None and seeds_needed(0.1, 0.0) == 2
    assert groups_needed([1.0, 2.0], [0, 1], 0.0) is None


@pytest.mark.parametrize("split", [True, False])
def test_so_many_users_see_it_with_four_in_five(split):
    """Drawn from users whose rows go together: rows alone would say far too few."""
    rng = np.random.default_rng(0)
    users, rows, lead = 4000, 5, 0.1
    own = rng.normal(size=users)
    scores = np.repeat(own, rows) + rng.normal(size=users * rows)
    needed = groups_needed(scores, np.repeat(np.arange(users), rows), lead, split)
    naive = groups_needed(scores, np.arange(len(scores)), lead, split) / rows
    assert needed > 2 * naive
    of_users = scores.reshape(users, rows).mean(axis=1)

    def drawn():
        return rng.choice(of_users, needed).mean() - (rng.choice(of_users, needed).mean() * split)

    centre = 0 if split else of_users.mean()
    error = of_users.std() * np.sqrt((1 + split) / needed)
    seen = [drawn() - centre + lead > 1.96 * error for _ in range(1000)]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.05)
