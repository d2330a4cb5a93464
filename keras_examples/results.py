"""What the examples print and save: epoch lines, the final table, a plot, a JSON.

Lines stay under 68 columns, since a prefix with the rank comes before each.
"""

import json
from statistics import mean, stdev

import keras
import paired
import tensorflow as tf

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]  # told apart by colour-blind readers


def print_setting(args, ranks):
    k = ranks * args.accumulation_steps
    say(f"MovieLens 100k, DLRM, {args.epochs} epochs of 80,000 examples")
    say(f"batch {args.batch_size:,} = {k} samples of {args.batch_size // k:,}", end=" ")
    say(f"({ranks} rank{'s' * (ranks > 1)} x {args.accumulation_steps} micro-batches)")


def print_run(name, learning_rate, l2, seed, seeds):
    say(f"\n{name}, learning rate {learning_rate:g}, L2 {l2:g}, seed {seed + 1} of {seeds}")
    say("epoch   loss  train AUC  valid AUC  test AUC  examples/s    GSNR")


def print_epoch(row, epochs):
    gsnr = "-" if row["gsnr"] is None else f"{row['gsnr']:.3f}"
    say(
        f"{row['epoch']:>2}/{epochs:<2}  {row['loss']:.4f}  {row['train_auc']:9.4f}"
        f"  {row['validation_auc']:9.4f}  {row['test_auc']:8.4f}"
        f"  {row['examples_per_second']:10,.0f}  {gsnr:>6}"
    )


def say(text, end="\n"):
    print(text, end=end, flush=True)  # a pipe under several ranks: don't hold lines back


def finish(runs, args, ranks):
    """Keep each optimizer's best setting, then compare, print, plot and save."""
    grid = group(runs)
    best = {name: best_setting(grid, name) for name in args.optimizers}
    if len(grid) > len(args.optimizers):
        print_grid(grid)
        for name, (_, *setting) in best.items():
            print_ends(grid, name, setting)
    kept = {name: grid[key] for name, key in best.items()}
    differences = compare(kept)
    print_table(kept)
    for found in differences:
        print_difference(found)
    args.output.mkdir(parents=True, exist_ok=True)
    settings = {**vars(args), "output": str(args.output), "ranks": ranks}
    versions = {"keras": keras.__version__, "tensorflow": tf.__version__}
    results = {
        "settings": settings, "versions": versions, "runs": runs, "differences": differences
    }  # fmt: skip
    (args.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(kept, differences, args, ranks, args.output / "auc.png")
    say(f"\nsaved {args.output}/results.json and {args.output}/auc.png")


def group(runs):
    """Runs by (optimizer, learning rate, L2): the seeds of one cell together."""
    grid = {}
    for run in runs:
        key = run["optimizer"], run["learning_rate"], run["l2"]
        grid.setdefault(key, []).append(run)
    return grid


def best_setting(grid, name):
    """The key of the cell with the highest mean validation AUC; test rows have no say."""
    return max((key for key in grid if key[0] == name), key=lambda key: validation(grid[key]))


def compare(kept):
    """Differences of all optimizers to the last, seed by seed."""
    *names, base = kept
    measures = {"test_auc": lambda row: row["test_auc"], "gap": gap}
    found = []
    for name in names:
        entry = {"optimizer": name, "base": base, "seeds": len(kept[base])}
        for measure, value in measures.items():
            ours, theirs = last(kept[name], value), last(kept[base], value)
            each = [one - other for one, other in zip(ours, theirs, strict=True)]
            entry[measure] = {**paired.difference(ours, theirs), "each": each}
        found.append({**entry, "verdict": paired.verdict(entry["test_auc"])})
    return found


def last(runs, value):
    return [value(run["history"][-1]) for run in runs]


def validation(runs):
    return mean(last(runs, lambda row: row["validation_auc"]))


def gap(row):
    return row["train_auc"] - row["test_auc"]


def spread(values, form):
    """Mean, and standard deviation over the seeds where there are several."""
    text = form.format(mean(values))
    return text + " ± " + form.format(stdev(values)) if len(values) > 1 else text


def print_grid(grid):
    rates = sorted({rate for _, rate, _ in grid})
    say(f"\n{'validation AUC at rate':24}" + "".join(f"{rate:>8g}" for rate in rates))
    for name, l2 in dict.fromkeys((name, l2) for name, _, l2 in grid):
        cells = "".join(f"{validation(grid[name, rate, l2]):8.4f}" for rate in rates)
        say(f"{f'{name}, L2 {l2:g}':24}{cells}")


def print_ends(grid, name, setting):
    """Says where the best value is the grid's first or last: a better one may lie beyond."""
    for axis, (label, value) in enumerate(zip(("learning rate", "L2"), setting), start=1):
        tried = {key[axis] for key in grid}
        ends = {min(tried), max(tried)} - {0}  # below no L2 at all there is nothing to try
        if len(tried) > 1 and value in ends:
            say(f"{name}: the best {label}, {value:g}, ends the grid: try beyond it")


def print_table(kept):
    say(f"\n{'optimizer':9}{'rate':>6}{'L2':>7}  {'test AUC':15}  {'train-test gap':15}  seconds")
    for name, runs in kept.items():
        rate, l2 = runs[0]["learning_rate"], runs[0]["l2"]
        test = spread(last(runs, lambda row: row["test_auc"]), "{:.4f}")
        train_test = spread(last(runs, gap), "{:.4f}")
        seconds = mean(run["seconds"] for run in runs)
        say(f"{name:9}{rate:>6g}{l2:>7g}  {test:15}  {train_test:15}  {seconds:7.1f}")


MEANING = {
    "ahead": "{} is ahead of {}: the AUC interval is above 0",
    "behind": "{} is behind {}: the AUC interval is below 0",
    "level": "{} is level with {}: the AUC interval contains 0",
    None: "{} against {}: one seed tells nothing, take --seeds 8",
}


def print_difference(found):
    name, base = found["optimizer"], found["base"]
    pairs = f"{found['seeds']} paired seeds, 95 % t interval" if found["verdict"] else "one seed"
    say(f"\n{name} - {base}, {pairs}")
    for label, measure in (("test AUC", found["test_auc"]), ("train-test gap", found["gap"])):
        bracket = ""
        if measure["low"] is not None:
            bracket = f"  [{measure['low']:+.4f}, {measure['high']:+.4f}]"
        say(f"{label:15}{measure['mean']:+.4f}{bracket}")
    say(MEANING[found["verdict"]].format(name, base))


def plot(kept, differences, args, ranks, path):
    """Test AUC and train-test gap by epoch, and the difference to the base by seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    widths = [5, 5, 4][: 3 if differences else 2]
    size = (sum(widths), 4)
    figure, axes = plt.subplots(
        1, len(widths), figsize=size, layout="constrained", width_ratios=widths
    )
    colours = dict(zip(kept, COLOURS))
    plot_curves(axes[0], kept, colours, "Test AUC", lambda row: row["test_auc"])
    plot_curves(axes[1], kept, colours, "Train AUC − test AUC", gap)
    axes[0].legend(loc="lower right", frameon=False)
    if differences:
        plot_differences(axes[2], differences, colours)
    k = ranks * args.accumulation_steps
    figure.suptitle(
        f"DLRM on MovieLens 100k: batch {args.batch_size:,}, k = {k} gradient samples, "
        f"{args.seeds} seed{'s' * (args.seeds > 1)}"
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_curves(axis, kept, colours, label, value):
    """Means as lines, seeds' range as bands."""
    for name, runs in kept.items():
        curves = list(zip(*([value(row) for row in run["history"]] for run in runs)))
        epochs = range(1, len(curves) + 1)
        legend = f"{name}, rate {runs[0]['learning_rate']:g}, L2 {runs[0]['l2']:g}"
        axis.plot(epochs, [mean(c) for c in curves], color=colours[name], marker="o", label=legend)
        low, high = [min(c) for c in curves], [max(c) for c in curves]
        axis.fill_between(epochs, low, high, color=colours[name], alpha=0.2, linewidth=0)
    axis.set(xlabel="Epoch", ylabel=label)
    axis.grid(alpha=0.3)


def plot_differences(axis, differences, colours):
    """Seeds as small points; mean and interval beside them; 0 is where nobody leads."""
    axis.axhline(0, color="black", linewidth=1)
    for place, found in enumerate(differences):
        colour, measure = colours[found["optimizer"]], found["test_auc"]
        seeds = measure["each"]
        axis.scatter([place - 0.1] * len(seeds), seeds, s=16, color=colour, alpha=0.5)
        if measure["low"] is not None:
            half = measure["high"] - measure["mean"]
            axis.errorbar(place + 0.1, measure["mean"], half, color=colour, marker="o", capsize=5)
    names = [f"{found['optimizer']} − {found['base']}" for found in differences]
    axis.set_xticks(range(len(names)), names)
    axis.set(xlim=(-0.6, len(names) - 0.4), ylabel="Test AUC, difference and 95 % interval")
    axis.grid(axis="y", alpha=0.3)
