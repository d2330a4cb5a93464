"""Measures what things cost, side by side."""

import argparse

from gsnr_tf import launch

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


def run(args):
    return args.measure(args)
