"""Train a DLRM on MovieLens clicks with a large batch, by GSNR-Adam and by Adam.

    gsnr-tf run --np 2 keras_examples/movielens_dlrm.py
    python keras_examples/movielens_dlrm.py --accumulation-steps 8

Both have an L2 on the embedding tables, tuned with the learning rate: GSNR-Adam as its
argument `l2`, Adam in the loss. They train on the same 8 samples per update. The first prints
(TensorFlow's notices and the ranks' numbers left out; two CPU cores shared with other work):

    MovieLens 100k, DLRM, 10 epochs of 80,000 examples
    batch 16,000 = 8 samples of 2,000 (2 ranks x 4 micro-batches)

    gsnr-adam, learning rate 0.05, L2 0.003, seed 1 of 8
    epoch   loss  train AUC  valid AUC  test AUC  examples/s    GSNR
     1/10  0.6895     0.6141     0.5990    0.6077       9,733   2.536
     2/10  0.6549     0.7663     0.7473    0.7560     157,953   1.662
    ...
    10/10  0.4735     0.8588     0.7931    0.7975     175,877   0.170
    ...
    optimizer  rate     L2  test AUC         train-test gap   seconds
    gsnr-adam  0.05  0.003  0.7976 ± 0.0011  0.0591 ± 0.0031      8.6
    adam       0.07  0.003  0.7965 ± 0.0018  0.0554 ± 0.0071      5.7

    gsnr-adam - adam, 8 paired seeds, 95 % t interval
    test AUC       +0.0011  [-0.0005, +0.0027]
    train-test gap +0.0037  [-0.0016, +0.0091]
    gsnr-adam is level with adam: the AUC interval contains 0

    saved runs/movielens/results.json and runs/movielens/auc.png
"""

import argparse
import os
import time
from pathlib import Path

# The optimizers this example knows, with the learning rate and the L2 that README.md explains.
TUNED = {
    "gsnr-adam": (0.05, 3e-3),
    "adam": (0.07, 3e-3),
    "gsnr-lamb": (0.07, 1e-4),
    "lamb": (0.05, 1e-4),
}


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Train a DLRM on MovieLens clicks with a large batch, by GSNR-Adam and by "
        "Adam, from the same weights, on the same batches, with the same schedule.",
        epilog="Under `gsnr-tf run --np RANKS` every batch is shared out among the ranks, and an "
        "update sees RANKS x ACCUMULATION_STEPS gradient samples (k), best 8 or more.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    names = list(TUNED)
    add("--optimizers", nargs="+", choices=names, metavar="NAME", default=names[:2],
        help="which to train with, the last as the base that the others are compared with, "
        "of: " + ", ".join(names))  # fmt: skip
    add("--batch-size", type=int, default=16_000, help="examples per update, over all ranks")
    add("--accumulation-steps", type=int, default=4, help="micro-batches per update on a rank")
    add("--epochs", type=int, default=10, help="passes over the 80,000 training rows")
    add("--seeds", type=int, default=8, help="runs per optimizer: weights and order differ")
    add("--learning-rates", type=float, nargs="+", metavar="RATE", help="peak rates that every "
        "optimizer tries, with every --l2, keeping its best pair by validation AUC; without it, "
        "each runs at its tuned rate: " + ", ".join(f"{n} {TUNED[n][0]:g}" for n in names),
        default=argparse.SUPPRESS)  # fmt: skip
    add("--l2", type=float, nargs="+", metavar="L2", help="coefficients that every optimizer "
        "tries: so many times the embedding tables are added to their gradient; without it, "
        "each has its tuned one: " + ", ".join(f"{n} {TUNED[n][1]:g}" for n in names),
        default=argparse.SUPPRESS)  # fmt: skip
    add("--estimator", choices=["paper", "robust", "james_stein"], default="paper",
        help="what GSNR measures")  # fmt: skip
    add("--granularity", choices=["element", "row"], default="element",
        help="whether the rows of embedding tables are judged as a whole")  # fmt: skip
    add("--l2-form", choices=["outside", "inside", "gated"], default="inside",
        help="where the L2 enters: outside, inside the multiplier, or gated by noise")  # fmt: skip
    add("--gamma", type=float, default=0.1, help="floor of the GSNR multiplier")
    add("--ceiling", type=float, default=10.0, help="ceiling of the GSNR multiplier")
    add("--second-moment", choices=["adapted", "raw"], default=argparse.SUPPRESS,
        help="squares the GSNR optimizers average, of adapted or of raw gradients; without it, "
        "those of the estimator")  # fmt: skip
    add("--threads", type=int, default=1, help="TensorFlow threads per rank")
    add("--output", type=Path, default=Path("runs/movielens"), help="folder for plot and JSON")
    return parser.parse_args()


# Options are read before TensorFlow is imported, so that --help answers at once.
if __name__ == "__main__":
    ARGUMENTS = parse_arguments()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# ruff: noqa: E402
import keras
import movielens
import results
import tensorflow as tf
from movielens_task import MovieLensDLRM, build_model

from gsnr_tf import DistributedOptimizer, GSNRAdam, GSNRLamb, rank, shard, size
from gsnr_tf.callbacks import BroadcastGlobalVariablesCallback, MetricAverageCallback
from gsnr_tf.schedules import WarmupCosine

GSNR = {"gsnr-adam": GSNRAdam, "gsnr-lamb": GSNRLamb}


def build_optimizer(name, learning_rate, l2, args):
    steps = args.accumulation_steps if args.accumulation_steps > 1 else None
    if name in GSNR:
        names = "estimator", "granularity", "l2_form", "gamma", "ceiling", "second_moment"
        form = {name: getattr(args, name) for name in names if hasattr(args, name)}
        # Decay belongs to the step: in the loss it would be taken for signal.
        form["l2"] = {MovieLensDLRM.l2_pattern: l2}
        return GSNR[name](learning_rate, gradient_accumulation_steps=steps, **form)
    base = {"lamb": keras.optimizers.Lamb, "adam": keras.optimizers.Adam}[name]
    # Horovod: the GSNR optimizers reduce by themselves, those of Keras need this.
    return DistributedOptimizer(base(learning_rate, gradient_accumulation_steps=steps))


def training_batches(data, seed, args):
    """Micro-batches of all epochs, each epoch in an order of its own.

    Row numbers are ordered and shared out first; features are looked up after, so
    that a rank gathers its own rows alone. The order depends on seed and epoch and
    nothing else: any number of ranks trains on the same batches.
    """
    features = {name: tf.constant(column) for name, column in data.train.features.items()}
    clicks = tf.constant(data.train.clicks)

    def row_numbers(epoch):
        rows = tf.range(movielens.TRAIN)
        rows = tf.random.experimental.stateless_shuffle(rows, seed=[seed, epoch])
        return tf.data.Dataset.from_tensor_slices(tf.reshape(rows, [-1, args.micro_batch]))

    def look_up(rows):
        return {name: tf.gather(features[name], rows) for name in features}, tf.gather(clicks, rows)

    batches = tf.data.Dataset.range(args.epochs).flat_map(row_numbers)
    batches = shard(batches)  # Horovod: each rank keeps its part of every micro-batch.
    return batches.map(look_up).prefetch(2)


class EpochRecorder(keras.callbacks.Callback):
    """Times the training, scores all three splits after each epoch, prints a line."""

    def __init__(self, data, optimizer, args):
        super().__init__()
        self.data, self.optimizer, self.args = data, optimizer, args
        self.history, self.seconds = [], 0.0

    def on_epoch_begin(self, epoch, logs=None):
        self.start, self.first_batch = time.perf_counter(), 0

    def on_train_batch_end(self, batch, logs=None):
        if not self.history and batch == 0:  # the first step is traced: start after it
            self.start, self.first_batch = time.perf_counter(), 1

    def on_epoch_end(self, epoch, logs=None):
        seconds = time.perf_counter() - self.start
        examples = movielens.TRAIN - self.first_batch * self.args.micro_batch
        self.seconds += seconds
        if rank() != 0:  # Horovod: all ranks hold the same weights, one may score them.
            self.history.append(None)
            return
        gsnr = getattr(self.optimizer, "gsnr", None)
        self.history.append(
            {
                "epoch": epoch + 1,
                "loss": float(logs["loss"]),
                "train_auc": self.score(self.data.train),
                "validation_auc": self.score(self.data.validation),
                "test_auc": self.score(self.data.test),
                "examples_per_second": examples / seconds,
                "gsnr": None if gsnr is None else float(gsnr),
            }
        )
        results.print_epoch(self.history[-1], self.args.epochs)

    def score(self, split):
        # In one batch: this many rows fit into memory, and scoring would take longer than training.
        return movielens.auc(split.clicks, self.model.predict_on_batch(split.features)[:, 0])


def train(name, learning_rate, l2, seed, data, args):
    """One run from fresh weights; returns what results.py needs to know of it."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    if rank() == 0:  # Horovod: one rank speaks and writes.
        results.print_run(name, learning_rate, l2, seed, args.seeds)
    # Keras' optimizers have no argument for an L2, and get it with the loss.
    model = build_model(data, l2=0.0 if name in GSNR else l2)
    updates = args.epochs * movielens.TRAIN // args.batch_size
    schedule = WarmupCosine(learning_rate, updates)
    optimizer = build_optimizer(name, schedule, l2, args)
    model.compile(optimizer=optimizer, loss="binary_crossentropy")
    recorder = EpochRecorder(data, optimizer, args)
    model.fit(
        training_batches(data, seed, args),
        epochs=args.epochs,
        steps_per_epoch=movielens.TRAIN // args.micro_batch,
        shuffle=False,  # the dataset shuffles itself
        verbose=0,
        callbacks=[
            BroadcastGlobalVariablesCallback(root_rank=0),  # Horovod: start from equal weights.
            MetricAverageCallback(),  # Horovod: the loss of all ranks, not of this one.
            recorder,
        ],
    )
    return {
        "optimizer": name,
        "learning_rate": learning_rate,
        "l2": l2,
        "seed": seed,
        "seconds": recorder.seconds,
        "history": recorder.history,
    }


def check(args):
    """Stop early, on all ranks alike, where the sizes don't fit; say what would.

    An epoch is a whole number of updates, so that every example counts once.
    """
    if min(args.accumulation_steps, args.epochs, args.seeds, args.threads) < 1:
        raise SystemExit("--accumulation-steps, --epochs, --seeds and --threads start at 1.")
    if min(getattr(args, "l2", [0])) < 0:
        raise SystemExit(f"--l2 starts at 0. Received: {min(args.l2)}.")
    steps, received = args.accumulation_steps, args.batch_size
    fitting = [b for b in range(steps, movielens.TRAIN + 1, steps) if movielens.TRAIN % b == 0]
    if received not in fitting:
        near = sorted(sorted(fitting, key=lambda b: abs(b - received))[:5])
        advice = f"Near it: {', '.join(map(str, near))}." if near else "None is: take other steps."
        raise SystemExit(
            f"--batch-size must divide the {movielens.TRAIN} training rows and be a multiple of "
            f"--accumulation-steps ({steps}). Received: {received}. {advice}"
        )


def main(args):
    check(args)
    args.optimizers = list(dict.fromkeys(args.optimizers))
    args.micro_batch = args.batch_size // args.accumulation_steps  # over all ranks
    tf.config.threading.set_intra_op_parallelism_threads(args.threads)
    tf.config.threading.set_inter_op_parallelism_threads(args.threads)
    data = movielens.load()
    if rank() == 0:  # Horovod: one rank speaks and writes.
        results.print_setting(args, size())
    runs = [
        train(name, learning_rate, l2, seed, data, args)
        for name in args.optimizers
        for learning_rate in getattr(args, "learning_rates", [TUNED[name][0]])
        for l2 in getattr(args, "l2", [TUNED[name][1]])
        for seed in range(args.seeds)
    ]
    if rank() == 0:  # Horovod: one rank speaks and writes.
        results.finish(runs, args, size())


if __name__ == "__main__":
    main(ARGUMENTS)
