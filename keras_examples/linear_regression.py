"""The smallest task of the paper (arXiv 2309.13681): ten weights, a batch of 2,048.

    python keras_examples/linear_regression.py

y = Σ Wᵢxᵢ + noise, with W = 1, 2, …, 10, from weights of 0, fresh examples at every step.
SGD against GSNR-SGD on the same examples: over learning rates, over the floor γ, and over
the number k of samples, which are micro-batches of one process. It prints a table and saves
a figure. gsnr_tf/compare/EVIDENCE_REGRESSION.md has what came out.
"""

import argparse
import os
from pathlib import Path


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description="Fit ten weights by SGD and by GSNR-SGD; sweep learning rate, γ and k.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--steps", type=int, default=100)
    add("--batch", type=int, default=2048, help="examples of a step")
    add("--noise", type=float, default=1.0, help="standard deviation of y about Σ Wᵢxᵢ")
    add("--seeds", type=int, default=5)
    add("--learning-rate", type=float, default=0.05, help="while γ or k is swept")
    add("--gamma", type=float, default=0.1, help="while learning rate or k is swept")
    add("--k", type=int, default=32, help="while learning rate or γ is swept")
    add("--learning-rates", type=float, nargs="+", default=[0.02, 0.05, 0.1, 0.25, 0.5])
    add("--gammas", type=float, nargs="+", default=[0.01, 0.03, 0.1, 0.3, 1.0])
    add("--ks", type=int, nargs="+", default=[2, 4, 8, 16, 32, 64, 128, 256])
    add("--plot", type=Path, default=Path("runs/linear_regression.png"), metavar="FILE")
    args = parser.parse_args(arguments)
    uneven = [k for k in (args.k, *args.ks) if k < 2 or args.batch % k]
    if uneven:
        parser.error(f"--batch {args.batch} cannot be cut into k = {uneven[0]} micro-batches")
    return args


# Options are read before TensorFlow is imported, so that --help answers at once.
if __name__ == "__main__":
    ARGUMENTS = parse_arguments()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# ruff: noqa: E402
import warnings
from typing import NamedTuple

import keras
import numpy as np

from gsnr_tf import GSNRSGD
from gsnr_tf._extras import told_what_to_install

TRUE_WEIGHTS = np.arange(1, 11, dtype="float32")[:, None]
# Of the excess risk at the start.
TARGET = 1e-3
DIVERGED = 1e6


class Form(NamedTuple):
    """An optimizer; without a ceiling Keras' SGD, of the whole batch at once."""

    ceiling: float | None = None
    gamma: float = 1.0
    k: int = 1

    def build(self):
        if self.ceiling is None:
            return keras.optimizers.SGD()
        return GSNRSGD(gamma=self.gamma, ceiling=self.ceiling, gradient_accumulation_steps=self.k)


def examples(args, seed):
    """Features and targets of all steps, the same for every form."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(args.steps * args.batch, len(TRUE_WEIGHTS))).astype("float32")
    noise = args.noise * rng.normal(size=(len(x), 1))
    return x, (x @ TRUE_WEIGHTS + noise).astype("float32")


class ExcessRisk(keras.callbacks.Callback):
    """E (y − Σ wᵢxᵢ)² over what the true weights have, after each step: Σ (w − W)²."""

    def __init__(self, steps):
        super().__init__()
        # What diverges stays there.
        self.curve, self.step = np.full(steps, np.inf), 0

    def on_train_batch_end(self, batch, logs=None):
        (weights,) = self.model.get_weights()
        risk = float(np.sum((weights - TRUE_WEIGHTS) ** 2))
        if not risk < DIVERGED:
            self.model.stop_training = True
            return
        self.curve[self.step], self.step = risk, self.step + 1


def curves(args, form, rates):
    """Excess risk after each step, a dict from each rate to an array `[seeds, steps]`."""
    keras.backend.clear_session(free_memory=False)
    dense = keras.layers.Dense(1, use_bias=False)
    model = keras.Sequential([keras.Input(TRUE_WEIGHTS.shape[:1]), dense])
    # All micro-batches of a step in one call.
    model.compile(form.build(), "mse", steps_per_execution=form.k, jit_compile=False)
    found = {rate: [] for rate in rates}
    for seed in range(args.seeds):
        x, y = examples(args, seed)
        for rate in rates:
            model.optimizer.learning_rate = rate
            model.set_weights([np.zeros_like(TRUE_WEIGHTS)])
            risk = ExcessRisk(args.steps)
            micro_batch = args.batch // form.k
            model.fit(x, y, micro_batch, shuffle=False, verbose=0, callbacks=[risk])
            found[rate].append(risk.curve)
    return {rate: np.stack(of_rate) for rate, of_rate in found.items()}


def forms(gamma, k):
    """By name: SGD, the paper's form, and one that may also take longer steps than SGD."""
    return {
        "SGD": Form(),
        "ceiling 1": Form(1.0, gamma, k),
        "ceiling 1/γ": Form(1 / gamma, gamma, k),
    }


def sweeps(args):
    """For each sweep its values, each with the forms that it compares and their rate."""
    middle = forms(args.gamma, args.k)
    return {
        "learning rate": {rate: (middle, rate) for rate in args.learning_rates},
        "γ": {gamma: (forms(gamma, args.k), args.learning_rate) for gamma in args.gammas},
        "k": {k: (forms(args.gamma, k), args.learning_rate) for k in args.ks},
    }


def measure(args):
    """`curves` of all that the sweeps compare, a dict from (form, rate)."""
    rates = {form: {args.learning_rate} for form in forms(args.gamma, args.k).values()}
    for sweep in sweeps(args).values():
        for compared, rate in sweep.values():
            for form in compared.values():
                rates.setdefault(form, set()).add(rate)
    return {
        (form, rate): curve
        for form, of_form in rates.items()
        for rate, curve in curves(args, form, sorted(of_form)).items()
    }


def steps_to_target(found):
    """The mean over seeds, infinite if one did not come there."""
    there = found <= TARGET * np.sum(TRUE_WEIGHTS**2)
    return float(np.where(there.any(axis=1), there.argmax(axis=1) + 1, np.inf).mean())


def print_table(args, measured):
    print(f"{args.steps} steps of {args.batch:,} examples, {args.seeds} seeds; where not swept:")
    print(f"learning rate {args.learning_rate:g}, γ = {args.gamma:g}, k = {args.k}")
    names = list(forms(args.gamma, args.k))
    for title, cell in (
        (f"steps to {TARGET:g} of the first excess risk", lambda c: f"{steps_to_target(c):.1f}"),
        ("excess risk after the last step", lambda c: f"{c[:, -1].mean():.2e}"),
    ):
        print(f"\n{title}\n{'':21}" + "".join(f"{name:>13}" for name in names))
        for label, sweep in sweeps(args).items():
            for value, (compared, rate) in sweep.items():
                cells = [cell(measured[form, rate]) for form in compared.values()]
                row = "".join(f"{text:>13}" for text in cells)
                print(f"{label:13} {value:<7g}{row}".replace("inf", "  -"))


def plot(args, measured):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    colours = dict(zip(forms(args.gamma, args.k), ["black", "#0072B2", "#D55E00"]))
    first, *others = axes.flat
    for name, form in forms(args.gamma, args.k).items():
        curve = measured[form, args.learning_rate].mean(axis=0)
        first.plot(range(1, args.steps + 1), curve, color=colours[name], label=name)
    first.set(yscale="log", xlabel="step", ylabel="excess risk, mean over seeds")
    first.set_title(f"learning rate {args.learning_rate:g}, γ = {args.gamma:g}, k = {args.k}")
    first.legend(frameon=False)
    for axis, (label, sweep) in zip(others, sweeps(args).items()):
        for name, colour in colours.items():
            steps = [steps_to_target(measured[c[name], rate]) for c, rate in sweep.values()]
            axis.plot(list(sweep), steps, color=colour, marker="o", markersize=4, label=name)
        axis.set(xscale="log", xlabel=label, ylabel=f"steps to {TARGET:g} of the first excess risk")
        axis.set_xticks(list(sweep), [f"{value:g}" for value in sweep])
        axis.set_xticks([], minor=True)
        axis.set_ylim(bottom=0)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    args.plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.plot, dpi=100)
    plt.close(figure)


def main(args):
    # k = 2 and 4 are here to be seen.
    warnings.filterwarnings("ignore", ".*samples an update")
    with told_what_to_install("linear_regression.py"):
        import matplotlib  # noqa: F401 - before the work, not after it
    measured = measure(args)
    print_table(args, measured)
    plot(args, measured)
    print(f"\nsaved {args.plot}")


if __name__ == "__main__":
    main(ARGUMENTS)
