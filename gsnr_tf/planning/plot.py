"""Step time, scaling efficiency and memory against workers, as a picture."""

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

# Okabe and Ito's colours, which colour-blind readers can tell apart; line styles and
# markers say the same once more.
STYLES = {
    "plain": {"color": "#000000", "linestyle": "--", "marker": "o"},
    "none": {"color": "#D55E00", "linestyle": "-.", "marker": "^"},
    "slices": {"color": "#0072B2", "linestyle": "-", "marker": "s"},
    "flat": {"color": "#009E73", "linestyle": ":", "marker": "D"},
}
NAMES = {
    "plain": "plain allreduce",
    "none": 'GSNR, sharding="none"',
    "slices": 'GSNR, sharding="slices"',
    "flat": "GSNR, slices, if all ranks exchanged at once",
}


def draw(rows, path):
    """Writes a PNG.

    Args:
        rows: `plan.Row`s, in the order of their workers.
        path: Where to.
    """
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for scheme in rows[-1].steps:
        style = {**STYLES[scheme], "label": NAMES[scheme], "markersize": 4}
        there = [row for row in rows if scheme in row.steps]
        workers = [row.workers for row in there]
        left.plot(workers, [1e3 * row.steps[scheme].seconds for row in there], **style)
        middle.plot(workers, [100 * row.efficiency[scheme] for row in there], **style)
        if scheme in rows[-1].memory:
            right.plot(workers, [row.memory[scheme] / 1e9 for row in there], **style)
    left.set(ylabel="step time [ms]", yscale="log", title="Step time")
    middle.set(ylabel="scaling efficiency [%]", ylim=(0, 105), title="Scaling efficiency")
    right.set(ylabel="memory of a worker [GB]", title="Memory without activations")
    right.set_ylim(bottom=0)
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    left.yaxis.set_major_formatter(plain)
    left.yaxis.set_minor_formatter(plain)
    for axes in (left, middle, right):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(plain)
        axes.set_xlabel("workers")
        axes.grid(alpha=0.3)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.savefig(path, dpi=120)
