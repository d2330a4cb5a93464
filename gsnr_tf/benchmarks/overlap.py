"""When the buckets of a step leave, and when backward ends: from Horovod's timeline.

`gsnr-tf bench overlap` trains a stack of dense layers on some ranks with a timeline,
and reads there, for each bucket, when its gradients were ready on the first rank and
when the exchange took place.
"""

import argparse
import json
from typing import NamedTuple

import keras
import numpy as np
import rich
from rich.table import Table

from gsnr_tf import comm
from gsnr_tf.optimizers import GSNRLamb

_WIDTH = 1024
_BATCH = 512


class Exchange(NamedTuple):
    """One bucket's way through one step, in microseconds of the timeline."""

    bucket: int
    ready: float
    start: float
    end: float


def train(layers, steps):
    """Some steps on a stack of dense layers, each large enough to travel alone."""
    keras.utils.set_random_seed(comm.rank())
    inputs = keras.Input((_WIDTH,))
    hidden = [keras.layers.Dense(_WIDTH) for _ in range(layers)]
    model = keras.Sequential([inputs, *hidden, keras.layers.Dense(1)])
    model.compile(GSNRLamb(1e-3, name="overlap"), "mse")
    x = np.random.default_rng(0).normal(size=(_BATCH * steps, _WIDTH)).astype("float32")
    model.fit(x, x[:, :1], batch_size=_BATCH, verbose=0)


def exchanges(timeline):
    """Lists of `Exchange`, one for each step.

    Args:
        timeline: Path of the file that Horovod wrote.
    """
    with open(timeline, encoding="utf-8") as file:
        text = file.read().strip().rstrip(",")
    # Horovod writes as it goes, and leaves the list open.
    events = json.loads(text if text.endswith("]") else text + "]")
    buckets = {
        event["pid"]: int(event["args"]["name"].split(".")[-3])
        for event in events
        if event.get("name") == "process_name" and event["args"].get("name", "").endswith(".0.mean")
    }
    found = {number: [] for number in buckets.values()}
    for event in events:
        times = found.get(buckets.get(event["pid"]))
        if times is None or "ts" not in event:
            continue
        if event.get("name") == "NEGOTIATE_ALLTOALL":
            times.append([event["ts"], None, None])
        elif event.get("name") == "ALLTOALL":
            times[-1][1] = event["ts"]
        elif event.get("ph") == "E" and times and times[-1][1]:
            times[-1][2] = event["ts"]
    steps = zip(*([Exchange(number, *t) for t in times] for number, times in found.items()))
    return [sorted(step, key=lambda exchange: exchange.ready) for step in steps]


def hidden_share(step):
    """Share of a step's exchange that took place before its last gradient was ready."""
    backward_ends = max(exchange.ready for exchange in step)
    total = sum(exchange.end - exchange.start for exchange in step)
    hidden = sum(max(0, min(exchange.end, backward_ends) - exchange.start) for exchange in step)
    return hidden / total


def show(steps):
    """Prints the step of median overlap, in ms since its first gradients."""
    step = sorted(steps, key=hidden_share)[len(steps) // 2]
    begin = step[0].ready
    table = Table(box=None, pad_edge=False)
    for heading in ("bucket", "ready ms", "sent from", "to"):
        table.add_column(heading, justify="right")
    for exchange in step:
        times = (exchange.ready, exchange.start, exchange.end)
        table.add_row(str(exchange.bucket), *(f"{(time - begin) / 1e3:.1f}" for time in times))
    rich.print(table)
    print(
        f"The last gradients came {(step[-1].ready - begin) / 1e3:.1f} ms after the first. "
        f"{100 * hidden_share(step):.0f} % of the\nexchange was over by then "
        f"(median of {len(steps)} steps)."
    )


def main(arguments=None):
    """Trains on this rank."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int)
    parser.add_argument("--steps", type=int)
    args = parser.parse_args(arguments)
    train(args.layers, args.steps)


if __name__ == "__main__":
    main()
