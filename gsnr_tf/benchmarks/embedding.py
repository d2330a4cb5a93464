"""Time of a whole step of an embedding table: lookup, gradient, exchange, update.

Every rank runs this; `gsnr-tf bench embedding` starts them. GSNR is compared to what one
would write without it: Horovod's all-gather of ids and rows, then the same rule on the rows
that any rank touched. The contenders take turns, as in `step`.
"""

import argparse
import warnings
from typing import NamedTuple

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf

from gsnr_tf import comm
from gsnr_tf.benchmarks.contenders import use_one_core
from gsnr_tf.benchmarks.memory import count_memory, peak_and_rest
from gsnr_tf.benchmarks.step import measure
from gsnr_tf.layers import Embedding
from gsnr_tf.rules import registry
from gsnr_tf.rules.rule import Coefficients
from gsnr_tf.stats.sparse import sums_by_row

_RATE = 1e-3
# Batches that take turns: a table is never touched twice alike in a row.
_BATCHES = 4


class Job(NamedTuple):
    """What is measured.

    Attributes:
        rule: Name of a rule.
        rows, width: Ints, of the table.
        touched: Int, distinct rows that a rank looks up in a step; a quarter of them twice.
    """

    rule: str
    rows: int
    width: int
    touched: int

    def batches(self):
        """Ids `[batches, lookups]` of this rank."""
        rng = np.random.default_rng(comm.rank())
        made = []
        for _ in range(_BATCHES):
            own = rng.choice(self.rows, self.touched, replace=False)
            made.append(rng.permutation(np.concatenate([own, own[: self.touched // 4]])))
        return tf.constant(np.stack(made), tf.int64)

    def bytes_sent(self):
        """By this rank in an update with GSNR: rows to their owners, own rows to the others;
        and what rows with an 8-byte id come to that any rank touches."""
        ranks, rank = comm.size(), comm.rank()
        row = 4 * self.width + (4 if self.rows < 2**31 else 8)
        own = np.unique(self.batches()[0])
        touched = np.unique(hvd.allgather(tf.constant(own), name="bench.touched").numpy())
        leaving = np.count_nonzero(own % ranks != rank)
        owned = np.count_nonzero(touched % ranks == rank)
        return row * (leaving + (ranks - 1) * owned), (4 * self.width + 8) * len(touched)


def gsnr(job, layer=Embedding):
    """A step of a model that is a table, by the family's optimizer."""
    row = registry.BY_NAME[job.rule]
    table = _layer(job, layer)
    optimizer = row.optimizer_class(_RATE, sparse="lazy", **row.arguments)
    optimizer.build(table.trainable_variables)
    optimizer.connect()
    gradient = _gradient(job, table)
    return tf.function(
        lambda: optimizer.apply_gradients([(gradient(), table.trainable_variables[0])]),
        autograph=False,
    )


def all_gathered(job):
    """The same by Horovod's all-gather, and the rule on touched rows."""
    row = registry.BY_NAME[job.rule]
    rule = row.optimizer_class(_RATE, **row.arguments).rule
    table = _layer(job, Embedding)
    variable = table.trainable_variables[0].value
    slots = {
        name: tf.Variable(tf.zeros([job.rows, job.width]), trainable=False)
        for name in rule.slots
        if name != "multiplier"
    }
    gradient, t = _gradient(job, table), tf.Variable(0.0)

    def step():
        own = gradient()
        ids = hvd.allgather(own.indices, name="bench.ids")
        values = hvd.allgather(own.values, name="bench.values")
        ids, index = tf.unique(ids)
        mean = sums_by_row(index, tf.size(ids), values) / hvd.size()
        theta = tf.gather(variable, ids)
        old = {name: tf.gather(slot, ids) for name, slot in slots.items()}
        at = Coefficients(_RATE, t.assign_add(1.0), 0.0)
        u, moved = rule.direction(theta, mean, 1.0, {**old, "multiplier": 1.0}, at)
        phi = rule.trust(tf.norm(theta), tf.norm(u), at) if rule.adapts else 1.0
        theta, further = rule.descend(theta, u, phi, moved, at)
        variable.scatter_update(tf.IndexedSlices(theta, ids))
        for name, slot in slots.items():
            slot.scatter_update(tf.IndexedSlices({**moved, **further}[name], ids))

    return tf.function(step, autograph=False)


def _layer(job, layer):
    # Zeros: what random numbers for ten million rows take is no part of a step.
    made = layer(job.rows, job.width, embeddings_initializer="zeros")
    made.build()
    return made


def _gradient(job, table):
    """A function that gives the gradient of the next batch, `tf.IndexedSlices`."""
    batches, turn = job.batches(), tf.Variable(0, dtype=tf.int64)

    def gradient():
        ids = batches[turn.assign_add(1) % _BATCHES]
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(table(ids) - 1.0))
        return tape.gradient(loss, table.trainable_variables[0].value)

    return gradient


def main(arguments=None):
    """Measures on this rank; rank 0 prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rule", choices=registry.BY_NAME, required=True)
    for name in ("rows", "width", "touched", "rounds"):
        parser.add_argument(f"--{name}", type=int, nargs="+" if name == "rows" else None)
    parser.add_argument("--memory", action="store_true", help="not time")
    parser.add_argument("--gsnr-only", action="store_true")
    args = parser.parse_args(arguments)
    if args.memory:
        count_memory()
    use_one_core()
    jobs = [Job(args.rule, rows, args.width, args.touched) for rows in args.rows]
    # Two ranks are what there is to compare with, not what one would train with.
    warnings.filterwarnings("ignore", ".*samples an update")
    if args.memory:
        _memory(jobs)
    else:
        _time(jobs, args.rounds, args.gsnr_only)


def _time(jobs, rounds, gsnr_only):
    most, steps = jobs[-1], {}
    if not gsnr_only:
        steps[f"all-gather, {most.rows:,} rows"] = all_gathered(most)
    steps.update({f"GSNR, {job.rows:,} rows": gsnr(job) for job in jobs})
    if not gsnr_only:
        steps[f"GSNR, {most.rows:,}, Keras' lookup"] = gsnr(most, keras.layers.Embedding)
    seconds = measure(list(steps.values()), rounds)
    sent, touched = most.bytes_sent()
    if comm.rank():
        return
    print(
        f"{comm.size()} ranks, {most.rule}, rows of {most.width}, {most.touched:,} touched "
        "an update and rank"
    )
    print(f"  {'':<34} {'ms':>9} {'ratio':>7}")
    for name, own in zip(steps, seconds):
        print(f"  {name:<34} {1e3 * np.median(own):9.1f} {np.median(own / seconds[0]):7.2f}")
    first = 0 if gsnr_only else 1
    for job, own in zip(jobs[1:], seconds[first + 1 :]):
        ratio = np.median(own / seconds[first])
        print(f"  {job.rows:,} rows take {ratio:.2f} of the time of {jobs[0].rows:,}")
    print(f"  sent: {sent:,} bytes a rank, {sent / touched:.2f} of the rows that any touches")


def _memory(jobs):
    for job in jobs:
        step = gsnr(job)
        peak, rest = peak_and_rest(step)
        if not comm.rank():
            print(
                f"  GSNR, {job.rows:,} rows: {peak / 1e6:,.1f} MB at the peak besides "
                f"{rest / 1e6:,.1f} MB of table and state",
                flush=True,
            )
        del step


if __name__ == "__main__":
    main()
