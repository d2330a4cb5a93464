"""Predicts step time, scaling efficiency and memory for 2 to 1,024 workers.

The answers are those of a model with your numbers in it (gsnr_tf/planning). Without
--calibrate they count the network alone, not what the processors do for an update."""

import json
from pathlib import Path

import rich

from gsnr_tf.commands.argument_types import elements, positive, whole
from gsnr_tf.rules import registry

HELP = "what to expect of more workers"


def add_arguments(parser):
    def add(name, kind, default, text, **more):
        shown = f"{text} (default: {default})" if default is not None else text
        return parser.add_argument(name, type=kind, default=default, help=shown, **more)

    add("--params", elements, "100M", "parameters of the model")
    add("--optimizer", str, "lamb", "which form", choices=registry.BY_NAME)
    add("--compute", positive, None, "seconds of a forward and a backward pass")
    add("--examples-per-second", positive, None, "of one worker; with --batch")
    add("--batch", whole, None, "examples of one worker in a step")
    add("--bandwidth", positive, 25.0, "of a host, Gbit/s in each direction")
    add("--latency", positive, 30.0, "of a message between hosts, microseconds")
    add("--ranks-per-host", whole, 1, "that share the host's link")
    add("--inner-bandwidth", positive, 400.0, "within a host, Gbit/s in each direction")
    add("--inner-latency", positive, 5.0, "within a host, microseconds")
    add("--buckets", whole, 1, "in which gradients leave while backward runs")
    add("--plot", Path, None, "draw a picture, too, into this file", metavar="FILE")
    many = {"nargs": "+", "metavar": "JSON"}
    add("--calibrate", Path, None, "learn the processor's part from these files of "
        "`gsnr-tf bench network --json`", **many)  # fmt: skip
    add("--check", Path, None, "show what --calibrate predicts beside these "
        "measurements, and stop", **many)  # fmt: skip
    parser.set_defaults(refuse=parser.error)


def _compute(args):
    """Seconds of a pass, told in one of two ways."""
    rate, batch = args.examples_per_second, args.batch
    if (rate is None) != (batch is None):
        args.refuse("--examples-per-second and --batch, a worker's in a step, go together")
    if (args.compute is None) == (rate is None) and not (args.calibrate and args.check):
        args.refuse("tell the speed of a worker: --compute, or --examples-per-second")
    return args.compute or (batch / rate if rate else 0.0)


def _settings(args):
    """The job and the cluster."""
    from gsnr_tf.planning import cost

    row = registry.BY_NAME[args.optimizer]
    slots, plain_slots = row.slots
    job = cost.Job(
        parameters=args.params,
        compute=_compute(args),
        buckets=args.buckets,
        slots=slots,
        plain_slots=plain_slots,
        sums=row.sums,
    )
    cluster = cost.Cluster(
        hosts=1,
        ranks_per_host=args.ranks_per_host,
        between=_link(args.latency, args.bandwidth),
        within=_link(args.inner_latency, args.inner_bandwidth),
    )
    return job, cluster


def _link(microseconds, gigabits):
    from gsnr_tf.planning import cost

    return cost.Link(latency=1e-6 * microseconds, bandwidth=1e9 / 8 * gigabits)


def _measured(paths):
    return [answer for path in paths for answer in json.loads(path.read_text())]


def run(args):
    from gsnr_tf.planning import calibrate, cost, plan, plan_tables

    if args.check and not args.calibrate:
        args.refuse("--check needs --calibrate, the measurements to learn from")
    job, cluster = _settings(args)
    costs = cost.Costs()
    if args.calibrate:
        fitted = calibrate.fit(_measured(args.calibrate))
        rich.print(plan_tables.costs_table(fitted), "", sep="\n")
        if args.check:
            compared = calibrate.compare(fitted, _measured(args.check))
            rich.print(plan_tables.comparison_table(compared))
            return 0
        costs = fitted.costs
    rows = plan.rows(job, cluster, costs)
    for table in plan_tables.plan_tables(rows):
        rich.print(table, "", sep="\n")
    for sentence in plan.advice(rows, job, cluster):
        print(plan_tables.wrapped(sentence))
    if args.plot is None:
        return 0
    from gsnr_tf.planning import plot

    plot.draw(rows, args.plot)
    print(f"saved {args.plot}")
    return 0
