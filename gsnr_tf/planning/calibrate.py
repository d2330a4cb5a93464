"""What a rank's processor costs, learned from measurements of `gsnr-tf bench network`.

The model is linear in its costs, so its own answers to one cost at a time are the
columns of a least-squares problem. Residuals are relative: 10 % of a short step counts
as much as 10 % of a long one.
"""

import dataclasses

import numpy as np

from gsnr_tf.planning import cost
from gsnr_tf.rules import registry

# Names in the measurements, and in the model.
_SCHEMES = {"keras": cost.PLAIN, "none": cost.WHOLE, "slices": cost.SLICES}
_UPDATE = ("fixed", "plain", "whole", "slices", "slice")
_EXCHANGE = ("launch", "per_byte")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
    """What measurements taught.

    Attributes:
        costs: `cost.Costs` of a processor core that one rank has for itself.
        latency: Seconds of a message on an undelayed link.
        headers: Bytes of headers for each byte of data.
        rows: How many measurements taught it.
    """

    costs: cost.Costs
    latency: float
    headers: float
    rows: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compared:
    """A prediction and a measurement, in seconds."""

    ranks: int
    parameters: int
    rate: float
    delay: float
    scheme: str
    predicted: float
    measured: float

    @property
    def error(self):
        """Of the prediction, relative to the measurement."""
        return self.predicted / self.measured - 1


def _measurements(answers):
    """Pairs of an answer of the benchmark and one of its rows."""
    return [(answer, row) for answer in answers for row in answer["rows"]]


def _predict(answer, scheme, costs, latency, headers):
    """The model's `cost.StepTime` of what was measured."""
    link = cost.Link(
        latency=latency + answer["delay"],
        bandwidth=answer["rate"] / 8 / (1 + headers),
    )
    cluster = cost.Cluster(
        hosts=answer["ranks"] // answer["ranks_per_host"],
        ranks_per_host=answer["ranks_per_host"],
        between=link,
        # Memory: what it takes is in the bytes that a processor handles.
        within=cost.Link(latency=latency, bandwidth=float("inf")),
    )
    job = cost.Job(
        parameters=answer["elements"],
        sums=registry.BY_NAME[answer["rule"]].sums,
    )
    # Ranks that share a core take turns.
    factor = max(1.0, answer["ranks"] / answer["cores"])
    return cost.step(scheme, job, cluster, costs.slowed(factor))


def _not_negative(columns, target):
    """Least squares with coefficients of 0 or more."""
    used = np.ones(columns.shape[1], bool)
    while True:
        found = np.zeros(len(used))
        found[used] = np.linalg.lstsq(columns[:, used], target, rcond=None)[0]
        if (found >= 0).all():
            return found
        # What would have to be negative cannot be told from these measurements.
        used &= found > 0


def fit(answers):
    """Learns costs from measurements.

    Args:
        answers: List of what the benchmark wrote, a dict for each setting.

    Returns:
        `Fitted`.

    Raises:
        ValueError: There are no measurements.
    """
    pairs = _measurements(answers)
    if not pairs:
        raise ValueError(
            "There is nothing to learn from: the files hold no measurements. Write "
            "some with `gsnr-tf bench network --json FILE`."
        )
    wire, handed = (sum(row[name] for _, row in pairs) for name in ("wire_bytes", "handed_bytes"))
    headers = wire / handed - 1

    def column(part, latency=0.0, **one):
        """The model's answers where one cost is 1 and the rest is 0."""
        return [
            part(_predict(a, _SCHEMES[r["contender"]], cost.Costs(**one), latency, headers))
            for a, r in pairs
        ]

    def exchange(step):
        return step.gradients + step.rest

    computed = np.array([row["compute"] for _, row in pairs])
    update = np.array([column(lambda s: s.update, **{name: 1.0}) for name in _UPDATE]).T
    costs = dict(zip(_UPDATE, _not_negative(update / computed[:, None], computed / computed)))

    seconds = np.array([row["seconds"] for _, row in pairs])
    carried = np.array(column(exchange))
    columns = [column(exchange, **{name: 1.0}) for name in _EXCHANGE]
    columns = np.array([*columns, column(exchange, latency=1.0)]).T - carried[:, None]
    *found, latency = _not_negative(
        columns / seconds[:, None], (seconds - computed - carried) / seconds
    )
    costs.update(zip(_EXCHANGE, found))
    costs = cost.Costs(**{name: float(value) for name, value in costs.items()})
    return Fitted(costs=costs, latency=float(latency), headers=headers, rows=len(pairs))


def compare(fitted, answers):
    """A `Compared` for each measurement."""
    return [
        Compared(
            ranks=answer["ranks"],
            parameters=answer["elements"],
            rate=answer["rate"],
            delay=answer["delay"],
            scheme=_SCHEMES[row["contender"]],
            predicted=_predict(
                answer,
                _SCHEMES[row["contender"]],
                fitted.costs,
                fitted.latency,
                fitted.headers,
            ).seconds,
            measured=row["seconds"],
        )
        for answer, row in _measurements(answers)
    ]
