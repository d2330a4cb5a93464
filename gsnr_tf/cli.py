"""The command `gsnr-tf`."""

import argparse
import importlib

from gsnr_tf._extras import told_what_to_install
from gsnr_tf._version import __version__

# Each is a module of gsnr_tf.commands (with _ for -) that has `HELP`,
# `add_arguments(parser)` and `run(args)`, which returns the exit code.
COMMANDS = (
    "run", "env", "config", "report", "advise", "compare", "tune", "plan", "bench",
    "install-horovod",
)  # fmt: skip


def parser():
    """The command line."""
    top = argparse.ArgumentParser(prog="gsnr-tf", description="Large-batch training for Keras 3.")
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(dest="command", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"gsnr_tf.commands.{name.replace('-', '_')}")
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return top


def main(arguments=None):
    """Runs the command line; returns the exit code."""
    args = parser().parse_args(arguments)
    with told_what_to_install(f"gsnr-tf {args.command}"):
        return args.run(args)


if __name__ == "__main__":
    raise SystemExit(main())
