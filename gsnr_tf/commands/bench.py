"""Measures what things cost, side by side."""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import rich

from gsnr_tf import launch
from gsnr_tf._small_models import is_small
from gsnr_tf.benchmarks import sandbox, soak_sandbox, tables
from gsnr_tf.commands import argument_types
from gsnr_tf.commands.argument_types import delay, elements, positive
from gsnr_tf.rules import registry

HELP = "what things cost, side by side"


def add_arguments(parser):
    benchmarks = parser.add_subparsers(dest="what", required=True)
    for name, help_, add, measure in (
        ("step", "an update, plain and with GSNR: time and memory", _add_step, _step),
        (
            "overlap",
            "how much of the exchange is hidden behind backward",
            _add_overlap,
            _overlap,
        ),
        (
            "network",
            "the same over links of a given rate, and the bytes they carry",
            _add_network,
            _network,
        ),
        (
            "embedding",
            "a step of an embedding table: lookup, gradient and update",
            _add_embedding,
            _embedding,
        ),
        (
            "ranks",
            "the statistics of many ranks, to compile and to run, on one",
            _add_ranks,
            _ranks,
        ),
        ("monitor", "a train step with GSNRMonitor and without it", _add_monitor, _monitor),
        (
            "soak",
            "what kills, pauses, full disks and the like do to a training",
            _add_soak,
            _soak,
        ),
    ):
        benchmark = benchmarks.add_parser(
            name, help=help_, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        add(benchmark.add_argument)
        benchmark.set_defaults(measure=measure, refuse=benchmark.error)


def _add_step(add):
    add("--np", type=int, nargs="+", default=[2], help="numbers of ranks")
    add("--params", type=elements, default="8M", help="parameters")
    add("--tensors", type=int, default=12, help="in how many tensors")
    add("--rule", choices=registry.BY_NAME, default="lamb")
    add("--rounds", type=int, default=15, help="turns of each contender")
    add(
        "--dtypes",
        nargs="+",
        choices=["float32", "bfloat16", "float16"],
        default=["float32"],
        help="in which gradients travel with slices",
    )


def _step(args):
    arguments = [
        f"--rule={args.rule}",
        f"--elements={args.params}",
        f"--tensors={args.tensors}",
        f"--rounds={args.rounds}",
        "--dtypes",
        *args.dtypes,
    ]
    for ranks in args.np:
        contenders = (2 if args.rule == "lars" else 3) + len(args.dtypes)
        contenders += is_small(args.params, ranks)
        jobs = [("step", arguments)]
        jobs += [("memory", [*arguments, f"--contender={number}"]) for number in range(contenders)]
        for module, given in jobs:
            code = launch.on_ranks(ranks, f"gsnr_tf.benchmarks.{module}", given)
            if code:
                return code
    return 0


def _add_overlap(add):
    add("--np", type=int, default=2, help="number of ranks")
    add("--layers", type=int, default=8, help="of 1 M parameters")
    add("--steps", type=int, default=8, help="how many to train")
    add("--timeline", type=Path, help="keep Horovod's timeline in this file")


def _overlap(args):
    with tempfile.TemporaryDirectory() as folder:
        timeline = args.timeline or Path(folder, "timeline.json")
        os.environ["HOROVOD_TIMELINE"] = str(timeline.resolve())
        arguments = [f"--layers={args.layers}", f"--steps={args.steps}"]
        code = launch.on_ranks(args.np, "gsnr_tf.benchmarks.overlap", arguments)
        if code == 0:
            from gsnr_tf.benchmarks import overlap

            # The first step is the one that is compiled.
            overlap.show(overlap.exchanges(timeline)[1:])
    return code


def _add_network(add):
    add("--np", type=argument_types.ranks, nargs="+", default=[2], help="numbers of ranks")
    add("--ranks-per-host", type=int, default=1, help="that share the host's link")
    add("--params", type=elements, nargs="+", default=[2_000_000], help="parameters")
    add("--tensors", type=int, default=12, help="in how many tensors")
    add("--rule", choices=["lamb", "adam", "momentum"], default="lamb")
    add("--rounds", type=int, default=5, help="turns of each contender")
    add(
        "--rates", type=positive, nargs="+", default=[10, 1, 0.1],
        help="of each link, in Gbit/s",
    )  # fmt: skip
    add(
        "--delays", type=delay, nargs="+", default=[0, 0.1, 5],
        help="from host to host, in ms, where the kernel can delay",
    )  # fmt: skip
    add("--json", type=Path, help="also write the measurements here")


def _network(args):
    per_host = args.ranks_per_host
    if per_host < 1 or any(n % per_host or n == per_host for n in args.np):
        args.refuse(
            f"--np must be 2 or more times --ranks-per-host. Received: {args.np} and {per_host}"
        )
    refusal = sandbox.why_not()
    if refusal:
        print(refusal, file=sys.stderr)
        return 1
    answers: list[dict] = []
    for number in args.np:
        arguments = [f"--ranks={number}", f"--ranks-per-host={per_host}"]
        arguments += [f"--rule={args.rule}"]
        arguments += [f"--tensors={args.tensors}", f"--rounds={args.rounds}"]
        arguments += ["--elements", *map(str, args.params)]
        arguments += ["--rates", *(str(1e9 * rate) for rate in args.rates)]
        arguments += ["--delays", *(str(1e-3 * delay) for delay in args.delays)]
        try:
            for line in sandbox.lines_of("gsnr_tf.benchmarks.cluster", arguments):
                _show(json.loads(line), args, answers)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
    if args.json:
        args.json.write_text(json.dumps(answers, indent=1) + "\n")
    return 0


def _show(told, args, answers):
    if "rows" in told:
        rich.print(tables.network_table(told), "", sep="\n")
        answers.append(told)
    elif not answers and not told["can_delay"] and any(args.delays):
        print("This kernel has no netem, so delay is left out.\n")


def _add_embedding(add):
    add("--np", type=int, nargs="+", default=[2], help="numbers of ranks")
    add(
        "--rows", type=elements, nargs="+", default=[1_000_000, 10_000_000],
        help="of the table",
    )  # fmt: skip
    add("--width", type=int, default=16, help="of a row")
    add("--touched", type=elements, default="50k", help="rows that a rank looks up in a step")
    add("--rule", choices=registry.BY_NAME, nargs="+", default=["momentum", "adam", "lamb"])
    add("--rounds", type=int, default=15, help="turns of each contender")
    add("--gsnr-only", action="store_true", help="nothing to compare with, for large tables")


def _embedding(args):
    arguments = ["--rows", *map(str, args.rows)]
    if args.gsnr_only:
        arguments.append("--gsnr-only")
    arguments += [f"--{name}={getattr(args, name)}" for name in ("width", "touched", "rounds")]
    for ranks in args.np:
        for rule in args.rule:
            for more in ([], ["--memory"]):
                given = [*arguments, f"--rule={rule}", *more]
                code = launch.on_ranks(ranks, "gsnr_tf.benchmarks.embedding", given)
                if code:
                    return code
    return 0


def _add_ranks(add):
    add("--simulate", type=int, nargs="+", default=[8, 64, 512, 1024], help="numbers of ranks")
    add("--elements", type=elements, default="64k", help="of the shard that a rank owns")


def _ranks(args):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from gsnr_tf.benchmarks import ranks

    ranks.main(args.simulate, args.elements)
    return 0


def _add_monitor(add):
    add("--np", type=int, nargs="+", default=[2], help="numbers of ranks")
    add("--sharding", choices=["none", "slices", "auto"], default="auto")
    add("--layers", type=int, default=8, help="of 512 x 512 parameters")
    add("--batch", type=int, default=256, help="examples of a rank")
    add("--every", type=int, default=10, help="updates a record")
    add("--turns", type=int, default=20, help="records")


def _monitor(args):
    names = ("sharding", "layers", "batch", "every", "turns")
    options = [f"--{name}={getattr(args, name)}" for name in names]
    for ranks in args.np:
        code = launch.on_ranks(ranks, "gsnr_tf.benchmarks.monitor", options)
        if code:
            return code
    return 0


def _add_soak(add):
    add("--minutes", type=positive, default=20, help="how long to disturb jobs")
    add("--seed", type=int, default=0, help="of which faults come when, to which rank")
    add(
        "--only",
        default="",
        metavar="REGEX",
        help="faults that fit, such as 'elastic' or 'engine: a rank is killed'",
    )


def _soak(args):
    given = [f"--minutes={args.minutes}", f"--seed={args.seed}", f"--only={args.only}"]
    return soak_sandbox.run(given)


def run(args):
    return args.measure(args)
