"""The search for a learning rate: the same way, and as long, for everyone."""

import math

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

# The first three rates are a factor of 4 apart.
STRIDE = 4.0
# How far the search may go from where it starts, either way.
REACH = 1000.0


def space(start):
    """The search space around a usual rate, a `FloatDistribution`."""
    return FloatDistribution(start / REACH, start * REACH, log=True)


def next_rate(tried, start):
    """The next learning rate to try.

    First the start and a factor of `STRIDE` to either side. Then, as long as the best
    rate is the smallest or the largest, one stride beyond it; once it has neighbours
    on both sides, the middle (of the logarithms) of the wider gap beside it.

    One number is searched for by a handful of trials. A sampler for many dimensions,
    such as TPE, would spend most of them on getting started.

    Args:
        tried: Dict from a learning rate to its loss: less is better, `inf` if the run
            diverged.
        start: Float, where the search starts.

    Returns:
        A float.
    """
    for rate in (start, start / STRIDE, start * STRIDE):
        if not any(math.isclose(rate, other) for other in tried):
            return rate
    rates = sorted(tried)
    # Of equals, as where all diverged, the smallest.
    at = rates.index(best_rate(tried))
    if at == 0:
        return rates[0] / STRIDE
    if at == len(rates) - 1:
        return rates[-1] * STRIDE
    below, best, above = rates[at - 1 : at + 2]
    wider = below if best / below > above / best else above
    if math.isclose(best / below, above / best):
        wider = below if tried[below] < tried[above] else above
    return math.sqrt(best * wider)


def best_rate(tried):
    """The rate with the least loss; of equals, the smallest."""
    return finalists(tried, 1)[0]


def finalists(tried, number=2):
    """The rates with the least loss, the best first; of equals, the smaller first.

    With one seed the best of several rates is in part the luckiest. The next best gets
    its chance with the other seeds too.
    """
    return sorted(sorted(tried), key=tried.get)[:number]


class Climb(optuna.samplers.BaseSampler):
    """`next_rate` as a sampler of Optuna. It depends on finished trials alone.

    So a search that was interrupted goes on as if it had not been.
    """

    def __init__(self, start):
        self._start = start

    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, param_name, param_distribution):
        rate = next_rate(tried(study), self._start)
        return min(max(rate, param_distribution.low), param_distribution.high)


def tried(study):
    """Dict from learning rate to loss, of the finished trials of a study."""
    finished = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    return {trial.params["learning_rate"]: trial.value for trial in finished}
