"""The names of all that is recorded, and what they mean. README.md has the same table."""

KEYS = {
    "train/<metric>": "metrics of `fit`: means of the epoch so far",
    "validation/<metric>": "the same on validation data, once an epoch",
    "gap/<metric>": "train − validation, once an epoch",
    "progress/begun": "updates done when `fit` began, or went on with a training",
    "progress/updates": "updates so far",
    "progress/skipped": "updates dropped because a gradient was not finite",
    "progress/epoch": "epochs begun",
    "batch/examples": "examples of an update, over all workers and micro-batches",
    "batch/samples": "k, samples of the gradient in an update",
    "batch/accumulation": "micro-batches of each worker in an update",
    "batch/learning_rate": "λ",
    "gsnr/ratio": "Σḡ²/Σσ²",
    "gsnr/multiplier": "mean multiplier of informative elements",
    "gsnr/at_floor": "share of informative elements whose multiplier is γ",
    "gsnr/at_ceiling": "share of informative elements whose multiplier is the ceiling",
    "gsnr/r_mean": "mean of what the estimator makes the multiplier of, where it is "
    "finite: r, or the share of signal",
    "gsnr/r_q10": "r that a tenth of the elements stay below",
    "gsnr/r_q50": "median of r",
    "gsnr/r_q90": "r that nine tenths of the elements stay below",
    "gsnr/cosine": "cosine between a sample and the mean, √(Σḡ²/(Σḡ² + Σσ²))",
    "gsnr/informative": "share of elements whose samples say anything",
    "norm/gradient": "‖ḡ‖ before clipping",
    "norm/weights": "‖θ‖ before the update",
    "norm/update": "‖u‖, before trust ratio and learning rate",
    "norm/trust_ratio": "φ; in total its mean over elements",
    "noise/trace": "variance of one example's gradient, over all elements",
    "noise/signal": "squared norm of the gradient, unbiased; below 0 under noise",
    "noise/scale": "B_simple in examples: both smoothed, then divided",
    "noise/critical_batch": "mean noise scale so far, weighted by progress; in examples",
    "noise/adascale_gain": "steps of one sample that an update is worth, 1 to k",
    "noise/generalization_ratio": "share of a step's gain that new data gets, 0 to 1",
    "speed/examples_per_second": "since the last record, all workers",
    "time/backward": "s from the begin of the call to the local gradient: input, "
    "forward, backward, of one micro-batch",
    "time/communication": "s until the samples of all workers are reduced, waiting for "
    "others included",
    "time/update": "s for rule, state and weights (with slices their allgather)",
    "histogram/r": "elements by r",
    "histogram/multiplier": "elements by multiplier",
}

# What there is for each variable too, under `variable/<name>`, from `<group>/<name>`.
OF_VARIABLES = tuple(key.split("/")[1] for key in KEYS if key.startswith(("gsnr/", "norm/")))
