"""What the examples print and save: epoch lines, the final table, a plot, a JSON.

Lines stay under 68 columns, since a prefix with the rank comes before each.
"""

import json
from statistics import mean, stdev

import keras
import tensorflow as tf

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7"]  # told apart by colour-blind readers


def print_setting(args, ranks):
    k = ranks * args.accumulation_steps
    say(f"MovieLens 100k, DLRM, {args.epochs} epochs of 80,000 examples")
    say(f"batch {args.batch_size:,} = {k} samples of {args.batch_size // k:,}", end=" ")
    say(f"({ranks} rank{'s' * (ranks > 1)} x {args.accumulation_steps} micro-batches)")


def print_run(name, learning_rate, seed, seeds):
    say(f"\n{name}, learning rate {learning_rate:g}, seed {seed + 1} of {seeds}")
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
    """Keep each optimizer's best learning rate, then print, plot and save."""
    grid = group(runs)
    if len(grid) > len(args.optimizers):
        print_grid(grid, args.optimizers)
    best = {
        name: max((key for key in grid if key[0] == name), key=lambda key: validation(grid[key]))
        for name in args.optimizers
    }
    kept = {name: grid[key] for name, key in best.items()}
    print_table(kept)
    args.output.mkdir(parents=True, exist_ok=True)
    settings = {**vars(args), "output": str(args.output), "ranks": ranks}
    versions = {"keras": keras.__version__, "tensorflow": tf.__version__}
    results = {"settings": settings, "versions": versions, "runs": runs}
    (args.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    plot(kept, args, ranks, args.output / "auc.png")
    say(f"\nsaved {args.output}/results.json and {args.output}/auc.png")


def group(runs):
    """Runs by (optimizer, learning rate): the seeds of one cell together."""
    grid = {}
    for run in runs:
        grid.setdefault((run["optimizer"], run["learning_rate"]), []).append(run)
    return grid


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


def print_grid(grid, names):
    rates = sorted({rate for _, rate in grid})
    say(f"\n{'validation AUC at rate':24}" + "".join(f"{rate:>8g}" for rate in rates))
    for name in names:
        say(f"{name:24}" + "".join(f"{validation(grid[name, rate]):8.4f}" for rate in rates))


def print_table(kept):
    say(f"\n{'optimizer':11}{'rate':>6}  {'test AUC':15}  {'train-test gap':15}  seconds")
    for name, runs in kept.items():
        test = spread(last(runs, lambda row: row["test_auc"]), "{:.4f}")
        train_test = spread(last(runs, gap), "{:.4f}")
        seconds = spread([run["seconds"] for run in runs], "{:.1f}")
        say(f"{name:11}{runs[0]['learning_rate']:>6g}  {test:15}  {train_test:15}  {seconds}")


def plot(kept, args, ranks, path):
    """Test AUC and train-test gap by epoch: means as lines, seeds' range as bands."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    panels = [("Test AUC", lambda row: row["test_auc"]), ("Train AUC − test AUC", gap)]
    for axis, (label, value) in zip(axes, panels, strict=True):
        for (name, runs), colour in zip(kept.items(), COLOURS):
            curves = list(zip(*([value(row) for row in run["history"]] for run in runs)))
            epochs = range(1, len(curves) + 1)
            legend = f"{name}, learning rate {runs[0]['learning_rate']:g}"
            axis.plot(epochs, [mean(c) for c in curves], color=colour, marker="o", label=legend)
            low, high = [min(c) for c in curves], [max(c) for c in curves]
            axis.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.set(xlabel="Epoch", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].legend(loc="lower right", frameon=False)
    k = ranks * args.accumulation_steps
    figure.suptitle(
        f"DLRM on MovieLens 100k: batch {args.batch_size:,}, k = {k} gradient samples, "
        f"{args.seeds} seed{'s' * (args.seeds > 1)}"
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)
