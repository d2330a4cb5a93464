"""What the runs of a study amount to: numbers, and the sentences they allow."""

import math
from dataclasses import dataclass
from statistics import mean, median, stdev


@dataclass(frozen=True)
class Outcome:
    """One contender at one batch size.

    Attributes:
        optimizer, batch, contender, samples: Who it is.
        rates: Dict from each learning rate tried to its validation score, `None` where
            the run diverged.
        learning_rate: The one that was chosen.
        runs: The rows of the runs that were scored, one for each seed.
        higher_is_better: As the task says.
        target: As the task says, or `None`.
    """

    optimizer: str
    batch: int
    contender: str
    samples: int
    rates: dict
    learning_rate: float
    runs: tuple
    higher_is_better: bool
    target: float | None

    @property
    def is_gsnr(self):
        return self.contender not in ("base", "control")

    @property
    def diverged(self):
        """How many of the runs diverged."""
        return sum(run["diverged"] for run in self.runs)

    @property
    def on_the_edge(self):
        """Whether the chosen rate is the smallest or largest that was tried."""
        return self.learning_rate in (min(self.rates), max(self.rates))

    @property
    def scores(self):
        """Test scores of the seeds that did not diverge."""
        return [run["test"] for run in self.runs if not run["diverged"]]

    @property
    def validation_merit(self):
        """Mean validation score of the seeds that trained; more is better."""
        sign = 1 if self.higher_is_better else -1
        return sign * mean(
            run["validation"] for run in self.runs if not run["diverged"]
        )

    @property
    def gaps(self):
        """By how much the score is better on training rows than on test rows."""
        sign = 1 if self.higher_is_better else -1
        trained = [run for run in self.runs if not run["diverged"]]
        return [sign * (run["train"] - run["test"]) for run in trained]

    def median_to_target(self, what):
        """Median over seeds of updates or seconds to the target.

        A run that misses the target takes infinitely long and stays in the median.

        Args:
            what: "update" or "seconds".

        Returns:
            A number, perhaps `inf`; `None` without a target.
        """
        if self.target is None or not self.runs:
            return None
        return median(self._to_target(run, what) for run in self.runs)

    def _to_target(self, run, what):
        for row in run["history"]:
            ahead = row["validation"] - self.target
            if (ahead if self.higher_is_better else -ahead) >= 0:
                return row[what]
        return math.inf

    def lead(self, other):
        """By how much the mean test score is better than another's."""
        difference = mean(self.scores) - mean(other.scores)
        return difference if self.higher_is_better else -difference


def outcomes(rows, task):
    """`Outcome`s from the rows of a study, in the order of the rows.

    A contender without a scored run (the study is not done) is left out.
    """
    grouped = {}
    for row in rows:
        key = row["optimizer"], row["batch"], row["contender"], row["samples"]
        grouped.setdefault(key, []).append(row)
    found = []
    for key, own in grouped.items():
        rates = {
            row["learning_rate"]: row["validation"]
            for row in own
            if row["phase"] == "search"
        }
        chosen = _chosen(own, task)
        if chosen is not None:
            runs = tuple(
                row
                for row in own
                if row["phase"] != "search" and row["learning_rate"] == chosen
            )
            found.append(
                Outcome(*key, rates, chosen, runs, task.higher_is_better, task.target)
            )
    return found


def _chosen(rows, task):
    """The finalist with the best mean validation score over its seeds.

    One of which a seed diverged is chosen only if all are like that. `None` if there
    has been no final run.
    """
    finals = {}
    for row in rows:
        if row["phase"] != "search":
            finals.setdefault(row["learning_rate"], []).append(row["validation"])

    def merit(rate):
        scores = finals[rate]
        if None in scores:
            return -math.inf
        return mean(scores) if task.higher_is_better else -mean(scores)

    return max(finals, key=merit, default=None)


def spread(values):
    """Sample standard deviation; `None` of a single value."""
    return stdev(values) if len(values) > 1 else None


def beyond_the_spread(one, other):
    """How one outcome compares with another.

    Returns:
        "better" or "worse" if the mean test scores differ by more than both standard
        deviations together, so that the bars in the plot do not overlap; "level" if
        they do not; `None` if there are too few seeds to say.
        A contender of which a seed diverged is worse than one that always trained.
    """
    if bool(one.diverged) != bool(other.diverged):
        return "worse" if one.diverged else "better"
    if min(len(one.scores), len(other.scores)) < 2:
        return None
    if abs(one.lead(other)) <= spread(one.scores) + spread(other.scores):
        return "level"
    return "better" if one.lead(other) > 0 else "worse"


def rival(found, outcome):
    """What a form is compared with: base, or the control where Keras has no base."""
    peers = {
        other.contender: other
        for other in found
        if (other.optimizer, other.batch) == (outcome.optimizer, outcome.batch)
    }
    return peers.get("base", peers.get("control"))


def verdicts(found):
    """A sentence for each optimizer and batch: who is ahead, and whether by enough."""
    for optimizer, batch in dict.fromkeys((o.optimizer, o.batch) for o in found):
        here = [o for o in found if (o.optimizer, o.batch) == (optimizer, batch)]
        yield f"{optimizer}, batch {batch:,}: " + _verdict(here)


def _verdict(here):
    scored = [outcome for outcome in here if outcome.scores]
    if not scored:
        return "every run diverged."
    forms = [outcome for outcome in scored if outcome.is_gsnr]
    base = rival(scored, scored[0])
    if base is None or not forms:
        return "there is nothing to compare."
    # By validation: the best of many by test would be in part the luckiest.
    best = max(forms, key=lambda form: form.validation_merit)
    result = beyond_the_spread(best, base)
    numbers = f"{told(best)} against {told(base)}"
    if result is None:
        return f"{numbers}. One seed cannot tell whether that is chance."
    if result == "better":
        sentence = f"GSNR is ahead beyond the spread, {numbers}."
    elif result == "worse":
        every = all(beyond_the_spread(form, base) == "worse" for form in forms)
        whom = "every form" if every else "the form that validation prefers"
        sentence = f"{base.contender} is ahead of {whom} beyond the spread, {numbers}."
    else:
        sentence = f"no difference beyond the spread, {numbers}."
    return sentence + _against_control(scored, best, base, result)


def _against_control(scored, best, base, result):
    """How much of a lead remains against the method switched off."""
    control = next((o for o in scored if o.contender == "control"), None)
    if result != "better" or control is None or control is base:
        return ""
    remains = beyond_the_spread(best, control)
    verb = "is" if remains == "better" else "is not"
    return f" Against the control ({told(control)}) it {verb} ahead beyond the spread."


def tallies(found):
    """A sentence for each form: how often it was ahead of base, and behind."""
    results = {}
    for outcome in found:
        other = rival(found, outcome)
        if outcome.is_gsnr and other is not None:
            result = beyond_the_spread(outcome, other)
            results.setdefault(outcome.contender, []).append(result)
    for name, each in results.items():
        yield (
            f"{name}: ahead of base beyond the spread in {each.count('better')} of "
            f"{len(each)} comparisons, behind in {each.count('worse')}."
        )


def reaches(found):
    """A sentence for each optimizer: how far each contender's batch can grow.

    The yardstick is base at the smallest batch; a batch is within reach if the score
    there is not worse beyond the spread.
    """
    for optimizer in dict.fromkeys(o.optimizer for o in found):
        own = [o for o in found if o.optimizer == optimizer]
        smallest, *larger = sorted({o.batch for o in own})
        yardstick = rival(own, next(o for o in own if o.batch == smallest))
        if not larger or yardstick is None or len(yardstick.scores) < 2:
            continue
        reach = {}
        for outcome in own:
            if beyond_the_spread(outcome, yardstick) in ("better", "level"):
                batch = max(outcome.batch, reach.get(outcome.contender, 0))
                reach[outcome.contender] = batch
        names = dict.fromkeys(o.contender for o in own)
        told_all = [f"{n} {reach[n]:,}" if n in reach else f"{n} none" for n in names]
        yield (
            f"{optimizer}: the largest batch not worse, beyond the spread, than "
            f"{yardstick.contender} at {smallest:,}: {'; '.join(told_all)}."
        )


def cautions(found):
    """Sentences on what the reader should not trust."""
    for outcome in found:
        name = f"{outcome.optimizer}, batch {outcome.batch:,}, {outcome.contender}"
        if outcome.on_the_edge:
            yield (
                f"{name}: the best learning rate, {outcome.learning_rate:.3g}, lies at "
                "the edge of those tried. A better one may lie beyond; allow more trials."
            )
        if outcome.diverged:
            yield f"{name}: {outcome.diverged} of {len(outcome.runs)} seeds diverged."


def told(outcome):
    """Name, mean and spread of an outcome, for a sentence."""
    return f"{outcome.contender} {with_spread(outcome.scores)}"


def with_spread(values, digits=4):
    """ "0.7797 ± 0.0008", or the mean alone of a single value."""
    if not values:
        return "diverged"
    text = f"{mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {stdev(values):.{digits}f}"


def reached(value, form="{:,.0f}"):
    """A number of updates or seconds to the target, for a table."""
    if value is None:
        return "–"
    return "missed" if math.isinf(value) else form.format(value)
