"""Recommends batch, workers and learning rate from what GSNRMonitor recorded."""

import sys

from rich.console import Console
from rich.table import Table

HELP = "batch, workers and learning rate for the next run"


def add_arguments(parser):
    parser.add_argument("folder", metavar="RUN_DIR", help="the log_dir of a GSNRMonitor")
    parser.add_argument(
        "--cost",
        type=float,
        help="how many times the worker-seconds of the same training may be spent on "
        "speed (default: 1.5)",
    )


def run(args):
    from gsnr_tf.monitor.advise import DEAREST, advise
    from gsnr_tf.monitor.run import Run

    try:
        advice = advise(Run(args.folder), DEAREST if args.cost is None else args.cost)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    _print(advice)
    return 0


def _print(advice):
    critical = advice.critical
    console = Console(highlight=False, markup=False)
    console.print(
        f"Critical batch: {critical.value:,.0f} examples ({critical.low:,.0f} to "
        f"{critical.high:,.0f} with 90 %, from {critical.records} records).\n"
        f"Largest batch worth its examples: {advice.largest:,}.\n"
    )
    table = Table("", "now", "next", "at either end, and why", box=None, pad_edge=False)
    for row in _rows(advice):
        table.add_row(*row)
    console.print(table)
    if len(advice.others) > 1:
        console.print("\nThe fastest for each number of workers:")
        console.print(_others(advice))
    console.print()
    for note in advice.notes:
        console.print(f"- {note}")


def _rows(advice):
    now, best = advice.now, advice.best

    def ends(name, form):
        texts = [form.format(getattr(end, name)) for end in advice.at_ends]
        return texts[0] if texts[0] == texts[1] else " to ".join(texts)

    for name, why in [
        ("batch", "examples an update"),
        ("workers", "what --cost allows"),
        ("accumulation", "micro-batches of a worker"),
    ]:
        values = (f"{getattr(layout, name):,}" for layout in (now, best))
        yield name, *values, f"{ends(name, '{:,}')}: {why}"
    rate = advice.learning_rate
    yield (
        "learning rate",
        f"{rate:.3g}",
        f"{rate * advice.rate_factor:.3g}",
        advice.rate_rule,
    )
    yield (
        "updates",
        "1",
        f"{best.steps:.2f}",
        f"{ends('steps', '{:.2f}')}: to the same loss",
    )
    examples = f"{ends('examples', '{:.2f}')}: to the same loss"
    yield "examples", "1", f"{best.examples:.2f}", examples
    if best.seconds is not None:
        backward, communication, update = (f"{1e3 * s:.3g}" for s in advice.times)
        why = f"{backward} ms a micro-batch, {communication} communication, {update} update"
        yield (
            "seconds",
            "1",
            f"{best.seconds:.2f}",
            f"{ends('seconds', '{:.2f}')}: {why}",
        )
        yield (
            "cost",
            "1",
            f"{best.cost:.2f}",
            f"{ends('cost', '{:.2f}')}: worker-seconds",
        )


def _others(advice):
    columns = ("workers", "accumulation", "batch", "updates", "seconds", "cost")
    table = Table(*columns, box=None, pad_edge=False)
    for other in advice.others:
        table.add_row(
            str(other.workers),
            str(other.accumulation),
            f"{other.batch:,}",
            *(f"{value:.2f}" for value in (other.steps, other.seconds, other.cost)),
        )
    return table
