"""The command `gsnr-tf`."""

import argparse
import importlib
import platform

import gsnr_tf
from gsnr_tf.benchmarks import launch
from gsnr_tf.comm import horovod


def environment():
    """What a bug report needs: pairs of a name and a version or a reason."""
    yield "gsnr_tf", gsnr_tf.__version__
    yield "Python", platform.python_version()
    for name in ("tensorflow", "keras", "numpy"):
        yield name, importlib.import_module(name).__version__
    try:
        hvd = horovod.load()
    except ImportError as error:
        yield "horovod", str(error)
    else:
        built = [name for name in ("nccl", "mpi", "gloo") if getattr(hvd, f"{name}_built")()]
        version = importlib.import_module("horovod").__version__
        yield "horovod", f"{version} ({', '.join(built)})"
    tf = importlib.import_module("tensorflow")
    yield "GPUs", str(len(tf.config.list_physical_devices("GPU")))
    yield "platform", platform.platform()


def elements(text):
    """8M, 300k or 1000000 as a number."""
    factors = {"k": 10**3, "M": 10**6, "G": 10**9}
    factor = factors.get(text[-1:], 1)
    try:
        return int(float(text[:-1] if factor > 1 else text) * factor)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number such as 8M") from None


def bench_step(args):
    """`gsnr-tf bench step`."""
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


def print_environment(args):
    """`gsnr-tf env`."""
    for name, value in environment():
        print(f"{name:<11} {value}")
    return 0


def parser():
    """The command line."""
    top = argparse.ArgumentParser(
        prog="gsnr-tf", description="Large-batch training for Keras 3."
    )
    top.add_argument("--version", action="version", version=gsnr_tf.__version__)
    commands = top.add_subparsers(dest="command", required=True)
    env = commands.add_parser("env", help="versions of what matters, for bug reports")
    env.set_defaults(run=print_environment)
    bench = commands.add_parser("bench", help="what things cost, side by side")
    step = bench.add_subparsers(dest="what", required=True).add_parser(
        "step",
        help="an update: allreduce and Keras, GSNR whole, GSNR in slices",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    step.add_argument("--np", type=int, nargs="+", default=[2], help="numbers of ranks")
    step.add_argument("--params", type=elements, default="8M", help="parameters")
    step.add_argument("--tensors", type=int, default=12, help="in how many tensors")
    step.add_argument("--rule", choices=["lamb", "adam", "momentum"], default="lamb")
    step.add_argument("--rounds", type=int, default=15, help="turns of each contender")
    step.set_defaults(run=bench_step)
    return top


def main(arguments=None):
    """Runs the command line; returns the exit code."""
    args = parser().parse_args(arguments)
    return args.run(args)


if __name__ == "__main__":
    raise SystemExit(main())
