"""The sentences that comparisons allow."""

import math
from statistics import mean, stdev

import numpy as np

from gsnr_tf.compare import power
from gsnr_tf.compare.outcomes import reach, reference, row_scores


def verdicts(each):
    """A sentence for each comparison: those named in advance, then those that are not."""
    for comparison in sorted(each, key=lambda c: not c.named):
        ours, theirs = comparison.ours, comparison.theirs
        name = f"{ours.optimizer}, batch {ours.batch:,}: {ours.contender}"
        note = "" if comparison.named else " (exploratory)"
        other = theirs.contender
        if theirs.optimizer != ours.optimizer:
            other = f"{theirs.optimizer}, the strongest base"
        yield f"{name} against {other}{note}: {_verdict(comparison)}"


def _verdict(comparison):
    ours, theirs = comparison.ours, comparison.theirs
    if not ours.scores or not theirs.scores:
        diverged = ours if not ours.scores else theirs
        return f"every run of {diverged.contender} diverged."
    if comparison.found is None:
        return "one seed cannot tell whether a difference is chance."
    return f"{comparison.result}, {difference_told(comparison)}."


def difference_told(comparison):
    """ "+0.0018 [+0.0004, +0.0031] over 8 seeds, p 0.018 (Holm), sign flips 0.008" """
    found = comparison.found
    text = (
        f"{interval(found)} over {found.seeds} seeds, "
        f"p {comparison.p:.3f}{' (Holm)' if comparison.named else ''}, "
        f"sign flips {found.flipped_p:.3f}"
    )
    if comparison.rows:
        low, high = comparison.rows
        text += f"; by test rows [{low:+.4f}, {high:+.4f}]"
    if comparison.least:
        at, least = comparison.least
        value = "" if at.regularizer is None else f", {at.regularizer:.3g}"
        text += (
            f"; least at settings that {at.contender} might have chosen as well, "
            f"{at.learning_rate:.3g}{value}: {interval(least)}"
        )
    return text


def beside_the_score(each):
    """A sentence for each comparison with base that was named: the task's other measures."""
    for comparison in each:
        if comparison.named and comparison.measures:
            told = [f"{name} {interval(found)}" for name, found in comparison.measures.items()]
            ours = comparison.ours
            yield (
                f"{ours.optimizer}, batch {ours.batch:,}: {ours.contender} − "
                f"{comparison.theirs.contender}: {'; '.join(told)}."
            )


def what_it_takes(each, groups=None, folder=None):
    """A sentence for each comparison that was named: seeds, and users of a live test, that
    would show a difference such as was measured.

    Args:
        each: List of `Comparison`.
        groups: `[test rows]`, whose row each is, or `None`.
        folder: `Path` of the run folder.
    """
    for comparison in each:
        found, ours = comparison.found, comparison.ours
        if not comparison.named or found is None or not found.mean:
            continue
        seeds = power.seeds_needed(found.mean, found.deviation)
        takes = [f"{seeds} seeds" if seeds else "more than 1,000 seeds"]
        if groups is not None and folder and comparison.rows:
            takes += _users(comparison, groups, folder)
        yield (
            f"{ours.optimizer}, batch {ours.batch:,}: to see {found.mean:+.4f} of "
            f"{ours.contender} with 80 % takes {'; '.join(takes)}."
        )


def _users(comparison, groups, folder):
    one, other = comparison.ours.by_seed, comparison.theirs.by_seed
    seeds = sorted(one.keys() & other.keys())
    ours, theirs = [
        np.mean([row_scores(folder, of[seed]) for seed in seeds], axis=0) for of in (one, other)
    ]
    lead = comparison.found.mean
    live = power.groups_needed(theirs, groups, lead)
    both = power.groups_needed(ours - theirs, groups, lead, split=False)
    return [
        f"in a live test {live:,} groups (users) in each arm",
        f"{both:,} groups where both models score the same rows",
    ]


def tallies(each):
    """A sentence for each form: how often it was ahead of base, and behind."""
    results = {}
    for comparison in each:
        if comparison.ours.is_gsnr:
            results.setdefault(comparison.ours.contender, []).append(comparison.result)
    for name, found in results.items():
        if len(found) > 1:
            yield (
                f"{name}: ahead in {found.count('ahead')} of {len(found)} comparisons, "
                f"behind in {found.count('behind')}."
            )


def reaches(found):
    """A sentence for each optimizer: how far each contender's batch can grow.

    The yardstick is base at the smallest batch; a batch is within reach if the score
    there is not behind.
    """
    for optimizer in dict.fromkeys(o.optimizer for o in found):
        own = [o for o in found if o.optimizer == optimizer]
        yardstick = reference(own)
        one_batch = len({o.batch for o in own}) == 1
        if one_batch or yardstick is None or len(yardstick.scores) < 2:
            continue
        told = []
        for name in dict.fromkeys(o.contender for o in own):
            best = reach([o for o in own if o.contender == name], yardstick)
            told.append(f"{name} {_reach_told(best, yardstick) if best else 'none'}")
        yield (
            f"{optimizer}: the largest batch not behind {yardstick.contender} at "
            f"{yardstick.batch:,}, as far as these seeds can tell: {'; '.join(told)}."
        )


def _reach_told(comparison, yardstick):
    """ "16,000 (-0.0002 [-0.0010, +0.0006], 50 updates a run, 31 to the target)" """
    ours = comparison.ours
    facts = [] if ours is yardstick else [interval(comparison.found)]
    facts.append(f"{ours.runs[0]['updates']:,} updates a run")
    if ours.target is not None:
        facts.append(f"{reached(ours.median_to_target('update'))} to the target")
    return f"{ours.batch:,} ({', '.join(facts)})"


def interval(found):
    """ "+0.0018 [+0.0004, +0.0031]" of a `paired.Difference`."""
    return f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def cautions(found):
    """Sentences on what the reader should not trust."""
    for outcome in found:
        name = f"{outcome.optimizer}, batch {outcome.batch:,}, {outcome.contender}"
        for what in outcome.edges:
            value = getattr(outcome, what.replace(" ", "_"))
            yield (
                f"{name}: the best {what}, {value:.3g}, lies at the end of those tried, "
                "though the grid has grown as far as it may. A better one may lie beyond."
            )
        if outcome.diverged:
            yield f"{name}: {outcome.diverged} of {len(outcome.runs)} seeds diverged."


def with_std(values, digits=4):
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
