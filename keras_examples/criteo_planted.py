"""Lines in Criteo's format, of which it is known how likely each is a click.

Ids follow a power law, as in click logs: a few are everywhere, most are rare. The logit of a
click is a sum over integers, categories and pairs of categories, so that no model has a higher
AUC, but for chance, than the logits themselves: the planted model's, or Bayes', AUC.
"""

import math

import numpy as np
from criteo import CATEGORIES, NUMBERS

SIZES = np.geomspace(4, 100_000, CATEGORIES).astype(int)  # ids of each category
PAIRS = [(0, 9), (1, 8), (2, 7), (3, 6), (4, 5)]  # categories that matter together
CHUNK = 100_000  # rows that are made at once
MISSING = 0.1  # share of the fields


class PlantedModel:
    """What makes a click, and lines that tell of clicks.

    Args:
        seed: Int. One seed always gives the same model, and the same lines.
    """

    def __init__(self, seed):
        self.seed = seed
        rng = np.random.default_rng(seed)
        self._weights = rng.normal(size=NUMBERS) * 0.5 / math.sqrt(NUMBERS)
        # The fewer ids a category has, the more it says.
        self._effects = [
            self._effect(rng, size, 1)[:, 0] * 0.6 / math.sqrt(1 + index)
            for index, size in enumerate(SIZES)
        ]
        self._vectors = {
            index: self._effect(rng, SIZES[index], 4) for pair in PAIRS for index in pair
        }
        # A last entry, which is that of id −1, for what is missing.
        self._names = [
            np.array([*(f"{name_of(index, i):08x}" for i in range(size)), ""], object)
            for index, size in enumerate(SIZES)
        ]

    @staticmethod
    def _effect(rng, size, width):
        """Normal numbers `[size + 1, width]` whose mean over a column is 0; the last is 0."""
        effect = rng.normal(size=(size, width))
        effect -= chances(size) @ effect
        return np.concatenate([effect, np.zeros((1, width))])

    def rows(self, number, part):
        """Columns of some rows.

        Args:
            number: Int.
            part: Int; each has other rows.

        Returns:
            Labels `[number]` of 0 and 1, integers `[number, 13]` with −1 for what is missing,
            ids `[number, 26]` likewise, and logits `[number]`.
        """
        rng = np.random.default_rng([self.seed, part])
        integers = np.exp(rng.normal(1, 1.5, (number, NUMBERS))).astype(int)
        ids = np.stack([power_law(rng.random(number), size) for size in SIZES], axis=1)
        for fields in (integers, ids):
            fields[rng.random(fields.shape) < MISSING] = -1
        logits = self._logits(integers, ids)
        labels = (rng.random(number) < 1 / (1 + np.exp(-logits))).astype(int)
        return labels, integers, ids, logits

    def _logits(self, integers, ids):
        logits = -1.3 + (np.log1p(np.maximum(integers, 0)) - 1.3) @ self._weights
        for index, effect in enumerate(self._effects):
            logits += effect[ids[:, index]]
        for one, other in PAIRS:
            vectors = self._vectors[one][ids[:, one]], self._vectors[other][ids[:, other]]
            logits += 0.2 * (vectors[0] * vectors[1]).sum(axis=1)
        return logits

    def write(self, path, number, parts):
        """Writes so many lines.

        Args:
            path: `pathlib.Path`.
            number: Int.
            parts: Iterator of ints, of which each 100,000 rows take one.

        Returns:
            Labels and logits, `[number]` each.
        """
        made = []
        with open(path, "w", encoding="ascii") as file:
            for start in range(0, number, CHUNK):
                rows = min(CHUNK, number - start)
                labels, integers, ids, logits = self.rows(rows, next(parts))
                file.writelines(self._lines(labels, integers, ids))
                made.append((labels, logits))
        return tuple(map(np.concatenate, zip(*made)))

    def _lines(self, labels, integers, ids):
        columns = [map(str, labels.tolist())]
        columns += [("" if x < 0 else str(x) for x in column.tolist()) for column in integers.T]
        columns += [names[column].tolist() for names, column in zip(self._names, ids.T)]
        return ("\t".join(fields) + "\n" for fields in zip(*columns))


def power_law(uniform, size):
    """Ids from 0 to `size` − 1 of numbers from 0 to 1: id i as often as log((i + 2)/(i + 1))."""
    return np.minimum((size + 1.0) ** uniform - 1, size - 1).astype(int)


def chances(size):
    """How likely `power_law` draws each id: about 1/(i + 1), by log(size + 1)."""
    i = np.arange(size)
    return np.log((i + 2) / (i + 1)) / np.log(size + 1)


def name_of(category, number):
    """A number of 32 bits for each id, all different within a category."""
    return (number * 2_654_435_761 + category * 40_503) % 2**32
