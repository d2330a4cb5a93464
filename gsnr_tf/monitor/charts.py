"""The charts of a run, each a matplotlib figure.

Colours are told apart by colour-blind readers (Okabe and Ito) and printers; lines differ
in style as well.
"""

import math

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator, PercentFormatter

from gsnr_tf.monitor import layers
from gsnr_tf.monitor.estimate import noise_of

BLUE, ORANGE, GREEN, PURPLE, GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#555555",
)
_WIDTH = 10.0  # inches, of a page of 1280 pixels
_MOST_ROWS = 60
_MOST_COLUMNS = 150
_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    # Text stays text: it can be searched, copied and read aloud.
    "svg.fonttype": "none",
    "font.family": "sans-serif",
}


def charts(run):
    """Triples of a title, what the reader sees there, and a figure."""
    drawn = []
    with matplotlib.rc_context(_STYLE):
        for title, text, draw in (
            ("Training", "", curves),
            (
                "Noise scale and batch",
                "Blue: noise scale of a part of the run, with the interval that holds it "
                "in 90 of 100 cases. While the batch lies below it, a larger batch saves "
                "steps at little cost; above it, a larger batch buys little.",
                noise,
            ),
            (
                "GSNR by layer",
                "Σḡ²/Σσ² of the samples: light where they agree, dark where they are noise.",
                heat_map,
            ),
            (
                "Multiplier",
                "What the steps of single elements were multiplied by.",
                multipliers,
            ),
            (
                "Time",
                "Backward: input, forward and backward of all micro-batches. "
                "Communication: until all samples are reduced, waiting for other workers "
                "included. Update: rule, state and weights. From the updates recorded.",
                times,
            ),
        ):
            figure = draw(run)
            if figure is not None:
                drawn.append((title, text, figure))
    return drawn


def _figure(height, *shape):
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.subplots(*shape or (1, 1), squeeze=False)


def _of_examples(axis, **labels):
    axis.set(xlabel="Examples trained on", **labels)
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))


def curves(run):
    """Metrics in training and validation, their gap, and the learning rate."""
    panels = [
        ("metric", name.split("/")[1])
        for name in run.names("train")
        if np.isfinite(run.series(name)[1]).any()
    ]
    panels = sorted(panels, key=lambda panel: panel[1] != "loss")[:6]
    panels += [("gap", name.split("/")[1]) for name in run.names("gap")[:3]]
    if len(run.series("batch/learning_rate")[0]):
        panels.append(("rate", None))
    if not panels:
        return None
    rows = math.ceil(len(panels) / 2)
    figure, axes = _figure(3.0 * rows, rows, 2)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (kind, name) in zip(axes.flat, panels):
        if kind == "metric":
            axis.plot(*run.series(f"train/{name}"), color=BLUE, label="train")
            examples, values = run.series(f"validation/{name}")
            if len(values):
                style = {"color": ORANGE, "marker": "o", "markersize": 4, "linestyle": "--"}
                axis.plot(examples, values, label="validation", **style)
                axis.legend()
            _of_examples(axis, ylabel=name)
        elif kind == "gap":
            axis.axhline(0, color=GREY, linewidth=1)
            examples, values = run.series(f"gap/{name}")
            axis.plot(examples, values, color=GREEN, marker="o", markersize=4)
            _of_examples(axis, ylabel=f"{name}: train − validation")
        else:
            axis.plot(*run.series("batch/learning_rate"), color=PURPLE)
            axis.set_ylim(bottom=0)
            _of_examples(axis, ylabel="learning rate")
    return figure


def noise(run):
    """Noise scale of the run's segments, the batch, and the critical batch."""
    found = noise_of(run)
    if found is None:
        return None
    figure, [[axis]] = _figure(4.2)
    estimates = [found.scale(i) for i in range(len(found.trace))]
    low, high = np.array([[e.low, e.high] for e in estimates]).T
    value = np.array([e.value for e in estimates])
    shown = np.isfinite(value)
    top = 10 * np.max([*value[shown], *found.batch])
    axis.plot(found.examples[shown], value[shown], color=BLUE, marker="o", label="noise scale")
    axis.fill_between(
        found.examples, low, np.minimum(high, top), color=BLUE, alpha=0.2, linewidth=0
    )
    for index in np.flatnonzero(~shown):
        axis.annotate(
            "∞", (found.examples[index], 0.95), xycoords=("data", "axes fraction"),
            ha="center", color=BLUE,
        )  # fmt: skip
    critical = found.critical_batch()
    if np.isfinite(critical.value):
        axis.axhline(
            critical.value,
            color=GREEN,
            linestyle="--",
            label="critical batch of the run",
        )
    examples, batch = run.series("batch/examples")
    axis.step(examples, batch, where="post", color=ORANGE, linewidth=2, label="batch in use")
    axis.set_yscale("log")
    _of_examples(axis, ylabel="Examples in an update")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(EngFormatter(sep=""))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def _pooled(matrix, most):
    """Means of neighbouring rows, at most `most` of them."""
    if len(matrix) <= most:
        return matrix
    return np.stack([part.mean(0) for part in np.array_split(matrix, most)])


def gsnr_by_layer(run):
    """Labels, examples `[columns]` and GSNR `[layers, columns]`, for the heat map."""
    examples, ratio = run.of_variables("ratio")
    _, norm = run.of_variables("gradient")
    signal = np.nan_to_num(norm**2)
    variance = np.where(np.isfinite(ratio) & (ratio > 0), signal / np.where(ratio > 0, ratio, 1), 0)
    groups = layers.group(run.paths, _MOST_ROWS)
    signal, variance = (
        np.stack([_pooled(m, _MOST_COLUMNS)[:, members].sum(1) for _, members in groups])
        for m in (signal, variance)
    )
    rows = np.where(variance > 0, signal / np.where(variance > 0, variance, 1), np.nan)
    return (
        [label for label, _ in groups],
        _pooled(examples[:, None], _MOST_COLUMNS)[:, 0],
        rows,
    )


def heat_map(run):
    """GSNR, layers from the input down, examples to the right."""
    if not len(run.of_variables("ratio")[0]):
        return None
    labels, examples, rows = gsnr_by_layer(run)
    figure, [[axis]] = _figure(1.4 + 0.19 * len(labels))
    colours = np.log10(np.where(rows > 0, rows, np.nan))
    step = (examples[-1] - examples[0]) / max(len(examples) - 1, 1) or 1
    extent = (examples[0] - step / 2, examples[-1] + step / 2, len(labels) - 0.5, -0.5)
    low, high = np.nanpercentile(colours, [1, 99]) if np.isfinite(colours).any() else (0, 1)
    image = axis.imshow(
        colours, aspect="auto", cmap="cividis", extent=extent, interpolation="nearest",
        vmin=low, vmax=max(high, low + 1e-3),
    )  # fmt: skip
    axis.set_yticks(range(len(labels)), [layers.short(label, 44) for label in labels])
    axis.tick_params(axis="y", labelsize=8, length=0)
    axis.grid(False)
    _of_examples(axis)
    bar = figure.colorbar(image, ax=axis, pad=0.01, fraction=0.04, aspect=30)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{10**value:.2g}")
    bar.set_label("GSNR (logarithmic)")
    return figure


def multipliers(run):
    """Shares at floor and ceiling over time, and the distribution at four times."""
    examples, floor = run.series("gsnr/at_floor")
    times_, edges, counts = run.histograms("multiplier")
    if not len(examples) or not len(times_):
        return None
    figure, [[shares, sizes]] = _figure(3.8, 1, 2)
    _, ceiling = run.series("gsnr/at_ceiling")
    _, mean = run.series("gsnr/multiplier")
    _draw_shares(shares, examples, np.nan_to_num(floor), np.nan_to_num(ceiling), mean)
    picked = sorted({int(i) for i in np.linspace(0, len(times_) - 1, 4)})
    if edges[-1] <= edges[0] * (1 + 1e-6):
        sizes.text(
            0.5, 0.5, f"γ = ceiling = {edges[0]:g}: the method is switched off",
            ha="center", transform=sizes.transAxes,
        )  # fmt: skip
        sizes.set_axis_off()
        return figure
    styles = zip(picked, (BLUE, GREEN, PURPLE, ORANGE), ("-", "--", "-.", ":"))
    for index, colour, line in styles:
        share = counts[index] / max(counts[index].sum(), 1)
        label = f"after {EngFormatter(sep='')(times_[index])} examples"
        sizes.stairs(share, edges, color=colour, linestyle=line, linewidth=1.8, label=label)
    sizes.set_xscale("log")
    sizes.xaxis.set_minor_locator(NullLocator())
    sizes.set_xticks([edges[0], np.sqrt(edges[0] * edges[-1]), edges[-1]])
    sizes.xaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
    sizes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    sizes.set(xlabel="Multiplier (logarithmic)", ylabel="Share of the elements")
    sizes.legend()
    return figure


def _draw_shares(axis, examples, floor, ceiling, mean):
    between = 1 - floor - ceiling
    axis.stackplot(
        examples, floor, between, ceiling, colors=("#999999", "#56B4E9", "#E69F00"),
        labels=("at the floor", "between", "at the ceiling"), linewidth=0,
    )  # fmt: skip
    axis.plot(examples, mean, color="black", linestyle="--", label="mean multiplier")
    axis.set_ylim(0, max(1.0, np.nanmax(mean, initial=1.0)))
    axis.margins(x=0)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _of_examples(axis, ylabel="Share of the elements")
    axis.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def times(run):
    """What an update's time goes into, and the speed."""
    accumulation = run.series("batch/accumulation")[1]
    examples, backward = run.series("time/backward")
    panels = []
    if len(backward):
        panels.append("parts")
    if len(run.series("speed/examples_per_second")[0]):
        panels.append("speed")
    if not panels:
        return None
    figure, [axes] = _figure(3.4, 1, len(panels))
    if "parts" in panels:
        parts = [backward * accumulation[-len(backward) :]]
        parts += [run.series(f"time/{n}")[1] for n in ("communication", "update")]
        axes[0].stackplot(
            examples, *(1e3 * np.array(part) for part in parts),
            colors=("#56B4E9", "#E69F00", GREEN), linewidth=0,
            labels=("backward", "communication", "update"),
        )  # fmt: skip
        axes[0].margins(x=0)
        # One slow update (others' work, a first trace) should not flatten the rest.
        total = 1e3 * np.sum(parts, axis=0)
        axes[0].set_ylim(0, 1.3 * np.nanpercentile(total, 95))
        _of_examples(axes[0], ylabel="ms an update")
        axes[0].legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    if "speed" in panels:
        axes[-1].plot(*run.series("speed/examples_per_second"), color=BLUE)
        axes[-1].set_ylim(bottom=0)
        axes[-1].yaxis.set_major_formatter(EngFormatter(sep=""))
        _of_examples(axes[-1], ylabel="Examples a second, all workers")
    return figure
