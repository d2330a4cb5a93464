"""One page for who decides: what a larger batch saves at an equal score, and what it took."""

import math
from statistics import mean, median

from gsnr_tf.compare import outcomes, verdicts

_HEAD = """# {task}: does it pay?

{batches}, {seeds} seeds, {ranks}. Scores are test {metric}; brackets are 95 % intervals over seeds.
"Not behind" is as far as these seeds can tell, and no proof of equality: read the interval.
"""


def page(study, task, found):
    """The page, in Markdown.

    Args:
        study: The `Study`.
        task: Its `Task`.
        found: List of `Outcome`.
    """
    asked = study.settings
    head = _HEAD.format(
        task=type(task).__name__,
        batches="Batches of " + ", ".join(f"{batch:,}" for batch in asked.batches),
        seeds=asked.seeds,
        ranks=f"{asked.ranks} ranks" if asked.ranks > 1 else "one process a run",
        metric=task.metric,
    )
    parts = [head]
    for name in dict.fromkeys(o.optimizer for o in found):
        own = [o for o in found if o.optimizer == name]
        parts += [f"## {name}\n", _saved(own, asked.ranks), _spent(study, own)]
    return "\n".join(parts)


def _saved(own, ranks):
    """The table of the largest batch at which each contender is not behind the reference."""
    reference = outcomes.reference(own)
    if reference is None or not reference.scores:
        return "No base was trained to compare with.\n"
    here = _cost(reference, ranks)
    rows = [
        "| at the score of the reference | batch | difference | updates | hours a training "
        "| worker-hours | saved |",
        "|---|---|---|---|---|---|---|",
        f"| reference: {reference.contender}, {mean(reference.scores):.4f} "
        f"| {reference.batch:,} | | {here[0]:,} | {here[1]:.2g} | {here[2]:.2g} | |",
    ]
    for name in dict.fromkeys(o.contender for o in own):
        best = outcomes.reach([o for o in own if o.contender == name], reference)
        if best is None:
            rows.append(f"| {name} | none | | | | | |")
        elif best.ours is not reference:
            rows.append(_row(best, here, ranks))
    return "\n".join(rows) + "\n"


def _row(best, here, ranks):
    ours, (updates, hours, workers) = best.ours, _cost(best.ours, ranks)
    saved = f"{1 - updates / here[0]:.0%} of updates, {here[1] - hours:+.2g} h"
    return (
        f"| {ours.contender} | {ours.batch:,} | {verdicts.interval(best.found)} | {updates:,} "
        f"| {hours:.2g} | {workers:.2g} | {saved} |"
    )


def _cost(outcome, ranks):
    """Updates of a run, its hours, and the hours of all its workers."""
    hours = median(run["seconds"] for run in outcome.runs) / 3600
    return outcome.runs[0]["updates"], hours, hours * ranks


def _spent(study, own):
    """What tuning took, alike for all."""
    name = own[0].optimizer
    runs, seconds = {}, {}
    for group in study.groups:
        for run, row in group.rows.items():
            cell = group.cells[run.contender]
            if cell.contender.rule == name:
                # A run that went on after its third counts its seconds from the start.
                key = cell, run.setting, run.seed
                runs[key] = max(runs.get(key, 0), 1 if run.whole else 1 / 3)
                seconds[key] = max(seconds.get(key, 0.0), row["seconds"])
    hours = sum(seconds.values()) / 3600
    contenders = len({cell for cell, _, _ in runs})
    return (
        f"Tuning and seeds took {math.fsum(runs.values()):,.0f} trainings in all for {contenders} "
        f"contenders and batches, {hours * study.settings.ranks:.2g} worker-hours.\n\n"
        "Hours are those of this machine, where every batch has the same workers. What more "
        "workers make of fewer updates, `gsnr-tf plan` predicts from a step's time.\n"
    )
