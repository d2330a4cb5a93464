"""Train a DLRM on Criteo's click logs, or on generated ones, by an optimizer of your choice.

    gsnr-tf run --np 2 keras_examples/criteo_dlrm.py --generate 200000 --accumulation-steps 4
    python keras_examples/criteo_dlrm.py --data 'train-*.tsv' --test-data test.tsv

The first prints (TensorFlow's notices and the ranks' numbers left out; two CPU cores shared
with other work):

    runs/criteo/train.tsv: 200,000 lines, 27.2% clicks; Bayes AUC 0.7789, log loss 0.4815
    runs/criteo/test.tsv: 40,000 lines, 27.0% clicks; Bayes AUC 0.7832, log loss 0.4764
    200,000 lines to train on
    DLRM, 41,657,361 parameters, gsnr-adam
    48 updates of 4,096 examples = 8 samples
      8%  loss 0.6519      1,831 examples/s
     17%  loss 0.6032      9,639 examples/s
    ...
    100%  loss 0.5406     12,362 examples/s
    test AUC 0.7029, log loss 0.5342
    9,032 examples/s in training, after the first step

README.md says how to get the real data, and what the numbers mean.
"""

import argparse
import os
import time
from pathlib import Path

RATES = {
    "gsnr-adam": 0.01,
    "gsnr-lamb": 0.05,
    "gsnr-sgd": 3.0,
    "adam": 0.01,
    "lamb": 0.05,
    "sgd": 1.0,
}


def parse_arguments(arguments=None):
    parser = argparse.ArgumentParser(
        description="Train a DLRM on click logs in Criteo's format and score it on others.",
        epilog="Under `gsnr-tf run --np RANKS` every batch is shared out among the ranks, and an "
        "update sees RANKS x ACCUMULATION_STEPS gradient samples (k), best 8 or more.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    unset = {"default": argparse.SUPPRESS}
    add("--data", nargs="+", metavar="PATH", help="files or globs to train on; those that end "
        "in .gz are unpacked", **unset)  # fmt: skip
    add("--test-data", nargs="+", metavar="PATH", help="files or globs to score on", **unset)
    add("--generate", type=int, metavar="ROWS", help="train on so many lines of a planted model, "
        "and score on a fifth as many: rank 0 writes them to --output", **unset)  # fmt: skip
    add("--output", type=Path, default=Path("runs/criteo"), help="folder for generated lines")
    add("--optimizer", choices=list(RATES), default="gsnr-adam")
    add("--learning-rate", type=float, help="peak; by default: "
        + ", ".join(f"{name} {rate:g}" for name, rate in RATES.items()), **unset)  # fmt: skip
    add("--sparse", choices=["auto", "lazy", "dense"], default="auto",
        help="what a GSNR optimizer does with rows of tables that no example touches")  # fmt: skip
    add("--rows-per-table", type=int, default=100_000, help="categories are hashed to as many")
    add("--dim", type=int, default=16, help="width of all embedding tables")
    add("--batch", type=int, default=4096, help="examples per update, over all ranks")
    add("--accumulation-steps", type=int, default=8, help="micro-batches per update on a rank")
    add("--epochs", type=float, default=1, help="passes over the training lines")
    add("--steps", type=int, help="updates, instead of --epochs", **unset)
    add("--shuffle", type=int, default=100_000, help="lines among which the next one is drawn")
    add("--seed", type=int, default=0)
    return checked(parser, parser.parse_args(arguments))


def checked(parser, args):
    given = vars(args)
    if ("generate" in given) == ("data" in given) or ("data" in given) != ("test_data" in given):
        parser.error("give either --generate, or both --data and --test-data")
    names = "batch", "accumulation_steps", "steps", "generate", "shuffle", "dim", "epochs"
    for name in names:
        if given.get(name, 1) <= 0:
            parser.error(f"--{name.replace('_', '-')} must be above 0. Received: {given[name]}")
    if args.rows_per_table < 2:
        parser.error(f"--rows-per-table starts at 2. Received: {args.rows_per_table}")
    if args.batch % args.accumulation_steps:
        parser.error(
            "--batch must be a multiple of --accumulation-steps. "
            f"Received: {args.batch} and {args.accumulation_steps}"
        )
    return args


# Options are read before TensorFlow is imported, so that --help answers at once.
if __name__ == "__main__":
    ARGUMENTS = parse_arguments()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# ruff: noqa: E402
import itertools

import criteo
import keras
import numpy as np
from criteo_planted import PlantedModel
from keras import layers
from movielens import auc

import gsnr_tf
from gsnr_tf import rank, size
from gsnr_tf.callbacks import BroadcastGlobalVariablesCallback, MetricAverageCallback
from gsnr_tf.schedules import WarmupCosine

OPTIMIZERS = {
    "gsnr-adam": gsnr_tf.GSNRAdam,
    "gsnr-lamb": gsnr_tf.GSNRLamb,
    "gsnr-sgd": gsnr_tf.GSNRSGD,
    "adam": keras.optimizers.Adam,
    "lamb": keras.optimizers.Lamb,
    "sgd": keras.optimizers.SGD,
}


def build_model(rows, width):
    """DLRM: vectors of categories and of all integers, their dot products, an MLP on top.

    Args:
        rows: Int, of each of the 26 tables.
        width: Int, of the vectors.

    Returns:
        A model from "numbers" `[batch, 13]` and "categories" `[batch, 26]` to logits
        `[batch, 1]`.
    """
    numbers = keras.Input((criteo.NUMBERS,), name="numbers")
    categories = keras.Input((criteo.CATEGORIES,), name="categories", dtype="int32")
    bottom = numbers
    for units in (64, width):
        bottom = layers.Dense(units, activation="relu")(bottom)
    # Keras' own Embedding copies its table at each step that changes some of its rows.
    vectors = [
        gsnr_tf.layers.Embedding(rows, width, name=f"table_{index}")(categories[:, index])
        for index in range(criteo.CATEGORIES)
    ]
    vectors = keras.ops.stack([bottom, *vectors], axis=1)
    products = keras.ops.matmul(vectors, keras.ops.transpose(vectors, (0, 2, 1)))
    number = 1 + criteo.CATEGORIES
    below = np.ravel_multi_index(np.tril_indices(number, -1), (number, number))
    pairs = keras.ops.take(keras.ops.reshape(products, (-1, number**2)), below, axis=1)
    top = keras.ops.concatenate([bottom, pairs], axis=1)
    for units in (128, 64):
        top = layers.Dense(units, activation="relu")(top)
    return keras.Model([numbers, categories], layers.Dense(1, name="logit")(top))


def build_optimizer(args, updates):
    schedule = WarmupCosine(getattr(args, "learning_rate", RATES[args.optimizer]), updates)
    steps = args.accumulation_steps if args.accumulation_steps > 1 else None
    made = OPTIMIZERS[args.optimizer]
    if args.optimizer.startswith("gsnr"):
        return made(schedule, gradient_accumulation_steps=steps, sparse=args.sparse)
    # Horovod: the GSNR optimizers reduce by themselves, those of Keras need this.
    return gsnr_tf.DistributedOptimizer(made(schedule, gradient_accumulation_steps=steps))


class Progress(keras.callbacks.Callback):
    """Times the training, and prints a line for each part of it.

    Args:
        examples: Int, of a micro-batch, over all ranks.
    """

    def __init__(self, examples):
        super().__init__()
        self.examples, self.seconds, self.batches = examples, 0.0, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.start, self.first = time.perf_counter(), 0

    def on_train_batch_end(self, batch, logs=None):
        self.last = batch
        if not self.batches and batch == 0:  # the first step is traced: start after it
            self.start, self.first = time.perf_counter(), 1

    def on_epoch_end(self, epoch, logs=None):
        seconds, batches = time.perf_counter() - self.start, self.last + 1 - self.first
        self.seconds += seconds
        self.batches += batches
        done, speed = (epoch + 1) / self.params["epochs"], batches * self.examples / seconds
        say(f"{done:4.0%}  loss {logs['loss']:.4f}  {speed:9,.0f} examples/s")

    @property
    def examples_per_second(self):
        return self.batches * self.examples / self.seconds


def say(text):
    if rank() == 0:  # Horovod: one rank speaks.
        print(text, flush=True)


def log_loss(labels, logits):
    """Mean of −log of the chance that each label was given, in nats."""
    return float(np.mean(np.logaddexp(0, np.where(labels > 0, -logits, logits))))


def generate(args):
    """Writes lines to train and to score on; paths of both."""
    paths = [args.output / "train.tsv", args.output / "test.tsv"]
    if rank() == 0:  # Horovod: one rank writes, where all ranks can read.
        args.output.mkdir(parents=True, exist_ok=True)
        planted, parts = PlantedModel(args.seed), itertools.count()
        for path, rows in zip(paths, (args.generate, max(args.generate // 5, 1))):
            labels, logits = planted.write(path, rows, parts)
            say(
                f"{path}: {rows:,} lines, {labels.mean():.1%} clicks; Bayes AUC "
                f"{auc(labels, logits):.4f}, log loss {log_loss(labels, logits):.4f}"
            )
    gathered(np.zeros([1]))  # the others wait
    return [[str(path)] for path in paths]


def gathered(rows):
    """The rows of all ranks, one below the other."""
    if size() == 1:
        return rows
    import horovod.tensorflow as hvd

    return hvd.allgather(rows, name="criteo.gathered").numpy()


def score(model, batches):
    """AUC and log loss of all ranks' rows, exact."""
    # Horovod: each rank scores its part.
    parts = [
        np.concatenate([labels, model.predict_on_batch(features)], axis=1)
        for features, labels in batches
    ]
    labels, logits = gathered(np.concatenate(parts).astype("float64")).T
    return auc(labels, logits), log_loss(labels, logits)


def number_of_updates(args, train):
    """Updates in each part of the training, and parts, 10 where there are so many updates."""
    updates = getattr(args, "steps", None)
    if updates is None:
        lines = criteo.count_lines(train)
        updates = int(args.epochs * lines) // args.batch
        say(f"{lines:,} lines to train on")
    if not updates:
        raise SystemExit(f"--batch is more than --epochs of the lines. Received: {args.batch}")
    each = max(updates // 10, 1)
    return each, updates // each


def main(args):
    """Trains and scores; AUC and log loss of the test lines."""
    keras.utils.set_random_seed(args.seed)
    if "generate" in args:
        train, test = generate(args)
    else:
        train, test = criteo.find_files(args.data), criteo.find_files(args.test_data)
    each, parts = number_of_updates(args, train)
    model = build_model(args.rows_per_table, args.dim)
    optimizer = build_optimizer(args, each * parts)
    model.compile(optimizer=optimizer, loss=keras.losses.BinaryCrossentropy(from_logits=True))
    say(f"DLRM, {model.count_params():,} parameters, {args.optimizer}")
    k = size() * args.accumulation_steps
    say(f"{each * parts} updates of {args.batch:,} examples = {k} samples")
    micro_batch = args.batch // args.accumulation_steps
    progress = Progress(micro_batch)
    model.fit(
        criteo.training_batches(train, micro_batch, args.rows_per_table, args.shuffle, args.seed),
        epochs=parts,
        steps_per_epoch=each * args.accumulation_steps,
        shuffle=False,  # the dataset shuffles itself
        verbose=0,
        callbacks=[
            BroadcastGlobalVariablesCallback(root_rank=0),  # Horovod: equal weights.
            MetricAverageCallback(),  # Horovod: the loss of all ranks.
            progress,
        ],
    )
    found = score(model, criteo.evaluation_batches(test, args.batch, args.rows_per_table))
    say(f"test AUC {found[0]:.4f}, log loss {found[1]:.4f}")
    say(f"{progress.examples_per_second:,.0f} examples/s in training, after the first step")
    if args.optimizer.startswith("gsnr"):
        say(optimizer.sharding_report())
    return found


if __name__ == "__main__":
    main(ARGUMENTS)
