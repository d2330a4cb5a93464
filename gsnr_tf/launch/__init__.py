"""Starts jobs of several ranks: on this machine, by ssh, elastic."""

from gsnr_tf.launch.background import Background
from gsnr_tf.launch.hosts import CannotStart
from gsnr_tf.launch.job import Job

__all__ = ["Background", "CannotStart", "Job", "on_ranks"]


def on_ranks(number, module, arguments):
    """Runs `python -m module` on ranks of this machine; shows what rank 0 prints.

    Returns:
        The exit code, after an error message where it is not 0.
    """
    import sys

    try:
        return Job(command=["-m", module, *arguments], ranks=number, only=0).run()
    except CannotStart as error:
        print(error, file=sys.stderr)
        return 2
