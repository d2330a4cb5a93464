"""Measures what things cost, side by side."""

import argparse

from gsnr_tf.benchmarks import launch

HELP = "what things cost, side by side"


def elements(text):
    """8M, 300k or 1000000 as a number."""
    factors = {"k": 10**3, "M": 10**6, "G": 10**9}
    factor = factors.get(text[-1:], 1)
    try:
        return int(float(text[:-1] if factor > 1 else text) * factor)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number such as 8M") from None


def add_arguments(parser):
    benchmarks = parser.add_subparsers(dest="what", required=True)
    step = benchmarks.add_parser(
        "step",
        help="an update: allreduce and Keras, GSNR whole, GSNR in slices",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    step.add_argument("--np", type=int, nargs="+", default=[2], help="numbers of ranks")
    step.add_argument("--params", type=elements, default="8M", help="parameters")
    step.add_argument("--tensors", type=int, default=12, help="in how many tensors")
    step.add_argument("--rule", choices=["lamb", "adam", "momentum"], default="lamb")
    step.add_argument("--rounds", type=int, default=15, help="turns of each contender")
    step.set_defaults(measure=_step)
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
    for ranks in args.np:
        code = launch.on_ranks(
            ranks,
            "gsnr_tf.benchmarks.step",
            [
                f"--rule={args.rule}",
                f"--elements={args.params}",
                f"--tensors={args.tensors}",
                f"--rounds={args.rounds}",
            ],
        )
        if code:
            return code
    return 0


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
