"""The pictures of a study."""

import math
from statistics import mean, stdev

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib import ticker

# Okabe and Ito's colours, which colour-blind readers tell apart; marks tell them apart
# in black and white.
BASE = {"color": "#000000", "marker": "o", "linestyle": "--"}
CONTROL = {"color": "#8C8C8C", "marker": "s", "linestyle": ":"}
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MARKS = ["^", "D", "v", "P", "X", "*"]


def styles(found):
    """Dict from a contender's name to how its lines look, the same in every picture."""
    chosen = {"base": BASE, "control": CONTROL}
    for outcome in found:
        at = len(chosen) - 2
        look = {"color": COLOURS[at % 6], "marker": MARKS[at % 6], "linestyle": "-"}
        chosen.setdefault(outcome.contender, look)
    return chosen


def results(found, optimizer, metric):
    """Score, gap, and what the target took, against the batch, for one optimizer.

    Returns:
        A matplotlib figure.
    """
    figure, axes = plt.subplots(2, 2, figsize=(10, 7.4), layout="constrained")
    own = [o for o in found if o.optimizer == optimizer]
    looks = styles(found)
    _with_bars(axes[0, 0], own, looks, lambda o: o.scores, f"Test {metric}")
    better = "train − test" if own[0].higher_is_better else "test − train"
    _with_bars(axes[0, 1], own, looks, lambda o: o.gaps, f"Gap of {metric}: {better}")
    _to_target(axes[1, 0], own, looks, "update", "Updates to the target (median)")
    _to_target(axes[1, 1], own, looks, "seconds", "Seconds of training to the target (median)")
    for axis in axes.flat:
        _batch_axis(axis, own)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center",
        ncols=2, frameon=False,
    )  # fmt: skip
    figure.suptitle(f"{optimizer}: mean and standard deviation over {len(own[0].runs)} seeds")
    return figure


def _batch_axis(axis, own):
    batches = sorted({outcome.batch for outcome in own})
    axis.set_xscale("log")
    axis.set_xticks(batches, [f"{batch:,}" for batch in batches])
    axis.minorticks_off()
    axis.set_xlim(batches[0] / 1.3, batches[-1] * 1.3)
    axis.set_xlabel("Batch (examples an update)")
    axis.grid(alpha=0.3)


def _by_contender(own):
    """Contenders of one optimizer: name, outcomes by batch, and a sideways shift.

    The shift, a factor, keeps bars from covering each other.
    """
    names = list(dict.fromkeys(outcome.contender for outcome in own))
    for index, name in enumerate(names):
        line = sorted((o for o in own if o.contender == name), key=lambda o: o.batch)
        yield name, line, 1.02 ** (index - (len(names) - 1) / 2)


def _with_bars(axis, own, looks, values, label):
    for name, line, shift in _by_contender(own):
        line = [outcome for outcome in line if values(outcome)]
        axis.errorbar(
            [outcome.batch * shift for outcome in line],
            [mean(values(outcome)) for outcome in line],
            yerr=[_std(values(outcome)) for outcome in line],
            label=name, capsize=3, markersize=6, **looks[name],
        )  # fmt: skip
    axis.set_ylabel(label)


def _to_target(axis, own, looks, what, label):
    medians = [outcome.median_to_target(what) for outcome in own]
    known = [m for m in medians if m is not None and math.isfinite(m)]
    axis.set_ylabel(label)
    if not known:
        missed = "no target was set" if own[0].target is None else "all missed the target"
        axis.text(0.5, 0.5, missed, transform=axis.transAxes, ha="center")
        axis.set_yticks([])
    top = 1.25 * max(known, default=1)
    for name, line, shift in _by_contender(own):
        points = [(o.batch * shift, o.median_to_target(what)) for o in line]
        hit = [(x, y) for x, y in points if y is not None and math.isfinite(y)]
        axis.plot([x for x, _ in hit], [y for _, y in hit], label=name, **looks[name])
        missed = [x for x, y in points if known and y is not None and math.isinf(y)]
        if missed:  # an empty line that is not clipped would confuse the layout
            axis.plot(
                missed,
                [top] * len(missed),
                "x",
                color=looks[name]["color"],
                clip_on=False,
            )
    if known:
        axis.set_ylim(0, top)
        axis.set_title("× at the top: missed", fontsize=9, loc="right")


def rates(found, optimizer, metric):
    """The validation score of the learning rates that were not stopped, for one optimizer.

    Returns:
        A matplotlib figure.
    """
    own = [o for o in found if o.optimizer == optimizer]
    batches = sorted({outcome.batch for outcome in own})
    figure, axes = plt.subplots(
        1, len(batches), figsize=(max(5, 4.4 * len(batches)), 4.6),
        layout="constrained", squeeze=False,
    )  # fmt: skip
    looks = styles(found)
    for axis, batch in zip(axes[0], batches):
        here = [outcome for outcome in own if outcome.batch == batch]
        for outcome in here:
            _curve(axis, outcome, looks[outcome.contender])
        # What fails altogether would press the rest flat: cut off the worst third.
        good = [s for o in here for s in o.rates.values() if s is not None]
        best = sorted(good, reverse=own[0].higher_is_better)[: max(2, 2 * len(good) // 3)]
        if best:
            margin = 0.1 * (max(best) - min(best)) or 0.01
            axis.set_ylim(min(best) - margin, max(best) + margin)
        axis.set(xscale="log", xlabel="Peak learning rate", title=f"batch {batch:,}")
        axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 3), numticks=8))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel(f"Validation {metric}")
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center",
        ncols=2, frameon=False,
    )  # fmt: skip
    figure.suptitle(f"{optimizer}: the grid at the chosen regularizer (ring: chosen)")
    return figure


def _curve(axis, outcome, look):
    points = sorted((r, s) for r, s in outcome.rates.items() if s is not None)
    axis.plot(*zip(*points), label=outcome.contender, markersize=4, **look) if points else None
    chosen = outcome.rates[outcome.learning_rate]
    if chosen is not None:
        axis.plot(
            outcome.learning_rate, chosen, "o", markersize=13, markerfacecolor="none",
            markeredgecolor=look["color"],
        )  # fmt: skip


def _std(values):
    """Sample standard deviation; 0 of a single value."""
    return stdev(values) if len(values) > 1 else 0
