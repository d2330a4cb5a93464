"""Measures what things cost, side by side."""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import rich

from gsnr_tf import launch
from gsnr_tf.benchmarks import overlap, report, sandbox

HELP = "what things cost, side by side"
RULES = ("lamb", "adam", "momentum", "lars")


def elements(text):
    """8M, 300k or 1000000 as a number."""
    factors = {"k": 10**3, "M": 10**6, "G": 10**9}
    factor = factors.get(text[-1:], 1)
    try:
        return int(float(text[:-1] if factor > 1 else text) * factor)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number such as 8M") from None


def positive(text):
    """A number above 0."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def delay(text):
    """A number of milliseconds, 0 or more."""
    return float(text) if float(text) == 0 else positive(text)


def ranks(text):
    """A number of ranks that one machine can hold."""
    number = int(text)
    if not 2 <= number <= 250:
        raise argparse.ArgumentTypeError(f"{text} is not from 2 to 250")
    return number


def add_arguments(parser):
    benchmarks = parser.add_subparsers(dest="what", required=True)
    step = benchmarks.add_parser(
        "step",
        help="an update, plain and with GSNR: time and memory",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    step.add_argument("--np", type=int, nargs="+", default=[2], help="numbers of ranks")
    step.add_argument("--params", type=elements, default="8M", help="parameters")
    step.add_argument("--tensors", type=int, default=12, help="in how many tensors")
    step.add_argument("--rule", choices=RULES, default="lamb")
    step.add_argument("--rounds", type=int, default=15, help="turns of each contender")
    step.add_argument(
        "--dtypes",
        nargs="+",
        choices=["float32", "bfloat16", "float16"],
        default=["float32"],
        help="in which gradients travel with slices",
    )
    step.set_defaults(measure=_step)
    overlapping = benchmarks.add_parser(
        "overlap",
        help="how much of the exchange is hidden behind backward",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    overlapping.add_argument("--np", type=int, default=2, help="number of ranks")
    overlapping.add_argument("--layers", type=int, default=8, help="of 1 M parameters")
    overlapping.add_argument("--steps", type=int, default=8, help="how many to train")
    overlapping.add_argument(
        "--timeline", type=Path, help="keep Horovod's timeline in this file"
    )
    overlapping.set_defaults(measure=_overlap)
    network = benchmarks.add_parser(
        "network",
        help="the same over links of a given rate, and the bytes they carry",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    network.add_argument(
        "--np", type=ranks, nargs="+", default=[2], help="numbers of ranks"
    )
    network.add_argument(
        "--ranks-per-host", type=int, default=1, help="that share the host's link"
    )
    network.add_argument(
        "--params", type=elements, nargs="+", default=[2_000_000], help="parameters"
    )
    network.add_argument("--tensors", type=int, default=12, help="in how many tensors")
    network.add_argument("--rule", choices=["lamb", "adam", "momentum"], default="lamb")
    network.add_argument(
        "--rounds", type=int, default=5, help="turns of each contender"
    )
    network.add_argument(
        "--rates", type=positive, nargs="+", default=[10, 1, 0.1],
        help="of each link, in Gbit/s",
    )  # fmt: skip
    network.add_argument(
        "--delays", type=delay, nargs="+", default=[0, 0.1, 5],
        help="from host to host, in ms, where the kernel can delay",
    )  # fmt: skip
    network.add_argument("--json", type=Path, help="also write the measurements here")
    network.set_defaults(measure=_network, refuse=network.error)
    monitor = benchmarks.add_parser(
        "monitor",
        help="a train step with GSNRMonitor and without it",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    monitor.add_argument("--np", type=int, nargs="+", default=[2], help="numbers of ranks")
    monitor.add_argument("--sharding", choices=["none", "slices", "auto"], default="auto")
    monitor.add_argument("--layers", type=int, default=8, help="of 512 x 512 parameters")
    monitor.add_argument("--batch", type=int, default=256, help="examples of a rank")
    monitor.add_argument("--every", type=int, default=10, help="updates a record")
    monitor.add_argument("--turns", type=int, default=20, help="records")
    monitor.set_defaults(measure=_monitor)


def _step(args):
    arguments = [
        f"--rule={args.rule}",
        f"--elements={args.params}",
        f"--tensors={args.tensors}",
        f"--rounds={args.rounds}",
        "--dtypes",
        *args.dtypes,
    ]
    contenders = (2 if args.rule == "lars" else 3) + len(args.dtypes)
    for ranks in args.np:
        jobs = [("step", arguments)]
        jobs += [
            ("memory", [*arguments, f"--contender={number}"]) for number in range(contenders)
        ]
        for module, given in jobs:
            code = launch.on_ranks(ranks, f"gsnr_tf.benchmarks.{module}", given)
            if code:
                return code
    return 0


def _overlap(args):
    with tempfile.TemporaryDirectory() as folder:
        timeline = args.timeline or Path(folder, "timeline.json")
        os.environ["HOROVOD_TIMELINE"] = str(timeline.resolve())
        arguments = [f"--layers={args.layers}", f"--steps={args.steps}"]
        code = launch.on_ranks(args.np, "gsnr_tf.benchmarks.overlap", arguments)
        if code == 0:
            # The first step is the one that is compiled.
            overlap.show(overlap.exchanges(timeline)[1:])
    return code


def _network(args):
    per_host = args.ranks_per_host
    if per_host < 1 or any(n % per_host or n == per_host for n in args.np):
        args.refuse(
            "--np must be 2 or more times --ranks-per-host. "
            f"Received: {args.np} and {per_host}"
        )
    refusal = sandbox.why_not()
    if refusal:
        print(refusal, file=sys.stderr)
        return 1
    answers = []
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
        rich.print(report.network_table(told), "", sep="\n")
        answers.append(told)
    elif not answers and not told["can_delay"] and any(args.delays):
        print("This kernel has no netem, so delay is left out.\n")


def _monitor(args):
    names = ("sharding", "layers", "batch", "every", "turns")
    options = [f"--{name}={getattr(args, name)}" for name in names]
    for ranks in args.np:
        code = launch.on_ranks(ranks, "gsnr_tf.benchmarks.monitor", options)
        if code:
            return code
    return 0


def run(args):
    return args.measure(args)
