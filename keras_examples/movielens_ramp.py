"""Reach the same accuracy in fewer updates: a batch that grows with the noise.

    python keras_examples/movielens_ramp.py

The DLRM of movielens_dlrm.py by GSNR-LAMB, without a schedule. First with a small batch
throughout, then with BatchSizeRamp, from the same weights and in the same order of the
examples. For each: updates and examples until the validation AUC was at the target.
"""

import argparse
import os
from pathlib import Path


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Train a DLRM on MovieLens clicks with a small batch and with one that "
        "grows with the gradient's noise, to the same validation AUC.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--micro-batch", type=int, default=125, help="examples of a micro-batch")
    add("--accumulation-steps", type=int, default=8, help="micro-batches at the start")
    add("--max-accumulation", type=int, default=128, help="micro-batches at the end")
    add("--learning-rate", type=float, default=0.01, help="at the start")
    add("--scaling", choices=["linear", "sqrt", "adascale"], default="sqrt",
        help="how the learning rate follows the batch")  # fmt: skip
    add("--target", type=float, default=0.78, help="validation AUC to reach")
    add("--epochs", type=int, default=5, help="passes over the 80,000 training rows")
    add("--seeds", type=int, default=3, help="runs of each: weights and order differ")
    add("--threads", type=int, default=1, help="TensorFlow threads")
    add("--output", type=Path, default=Path("runs/ramp"), help="folder for what is recorded")
    return parser.parse_args()


# Options are read before TensorFlow is imported, so that --help answers at once.
if __name__ == "__main__":
    ARGUMENTS = parse_arguments()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# ruff: noqa: E402
import keras
import movielens
import tensorflow as tf
from movielens_dlrm import build_model

from gsnr_tf import GSNRLamb
from gsnr_tf.callbacks import BatchSizeRamp, GSNRMonitor


class Score(keras.callbacks.Callback):
    """Scores the validation split every 4,000 examples."""

    def __init__(self, data, optimizer, micro_batch):
        super().__init__()
        self.data, self.optimizer = data, optimizer
        self.every, self.micro_batch = max(1, 4000 // micro_batch), micro_batch
        self.calls, self.found = 0, []

    def on_train_batch_end(self, batch, logs=None):
        self.calls += 1
        if self.calls % self.every:
            return
        split = self.data.validation
        scores = self.model(split.features, training=False).numpy()[:, 0]
        auc = movielens.auc(split.clicks, scores)
        updates = int(self.optimizer.iterations)
        self.found.append((auc, updates, self.calls * self.micro_batch))


def batches(data, seed, args):
    """Micro-batches of one epoch after the other, each in an order of its own."""
    features = {name: tf.constant(column) for name, column in data.train.features.items()}
    clicks = tf.constant(data.train.clicks)
    rows = tf.data.Dataset.range(movielens.TRAIN)
    rows = rows.shuffle(movielens.TRAIN, seed=seed).batch(args.micro_batch)

    def look_up(row):
        return {name: tf.gather(features[name], row) for name in features}, tf.gather(clicks, row)

    return rows.map(look_up)


def train(data, seed, args, ramp=None):
    """Trains from fresh weights; returns pairs of AUC, updates and examples."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    model = build_model(data)
    optimizer = GSNRLamb(args.learning_rate, gradient_accumulation_steps=args.accumulation_steps)
    model.compile(optimizer=optimizer, loss="binary_crossentropy")
    folder = args.output / f"{'ramp' if ramp else 'constant'}-{seed}"
    score = Score(data, optimizer, args.micro_batch)
    callbacks = [GSNRMonitor(folder, every=5), score]
    if ramp:
        callbacks.insert(1, ramp)
    dataset = batches(data, seed, args)
    model.fit(dataset, epochs=args.epochs, shuffle=False, verbose=0, callbacks=callbacks)
    return score.found


def compare(data, seed, args):
    """One pair of runs, a line for each; the ratio of updates, or `None`."""
    ramp = BatchSizeRamp(args.max_accumulation, scaling=args.scaling, every=5)
    needed = {}
    for name, growing in (("constant", None), ("ramp", ramp)):
        found = train(data, seed, args, growing)
        reached = [(u, e) for auc, u, e in found if auc >= args.target]
        needed[name] = reached[0] if reached else None
        updates, examples = (f"{n:,}" for n in reached[0]) if reached else "--"
        sizes = [args.accumulation_steps * args.micro_batch]
        if growing:
            sizes += [done["accumulation"] * args.micro_batch for done in ramp.history]
        print(
            f"{seed:>4}  {name:8}  {updates:>7}  {examples:>8}  {max(found)[0]:9.4f}"
            f"  {found[-1][1]:>7,}  {' > '.join(f'{size:,}' for size in sizes)}",
            flush=True,
        )
    if None in needed.values():
        return None
    return needed["ramp"][0] / needed["constant"][0]


def main(args):
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(args.threads)
    data = movielens.load()
    print(f"to validation AUC {args.target:g}          all {args.epochs} epochs")
    print("seed  batch     updates  examples  best AUC  updates  batch", flush=True)
    ratios = [compare(data, seed, args) for seed in range(args.seeds)]
    shares = ", ".join("missed" if r is None else f"{100 * r:.0f} %" for r in ratios)
    print(f"\nupdates to the target with the ramp, of those without: {shares}")
    print(f"recorded in {args.output}: gsnr-tf report {args.output}/ramp-0")


if __name__ == "__main__":
    main(ARGUMENTS)
