"""Prints what a bug report needs: versions, Horovod, devices, known problems."""

from gsnr_tf.launch import environment

HELP = "versions, devices and known problems, for bug reports"


def add_arguments(parser):
    """None."""


def run(args):
    environment.show(environment.facts())
    return 0
