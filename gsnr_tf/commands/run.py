"""Runs a script on several ranks, after a look at whether the hosts can do it.

    gsnr-tf run --np 4 train.py --epochs 10
    gsnr-tf run --hosts node1:4,node2:4 train.py
    gsnr-tf run --np 2 --min-np 1 --max-np 8 --host-discovery-script ./hosts.sh train.py

Options before the script are for gsnr-tf, those after it for the script. Each line
that a rank prints comes with the rank's number. If a rank fails, all end, and its
traceback is what comes last. Variables HOROVOD_... work as with horovodrun.
"""

import argparse
import os
import subprocess
import sys

from gsnr_tf.launch import CannotStart, Job, hosts

HELP = "a script on several ranks, of one host or many"


# Of other launchers, and what they are here.
_OTHER_SPELLINGS = {
    "-np": "--np",
    "-n": "--np",
    "--num_gpus": "--np",
    "--num-gpus": "--np",
    "--nproc_per_node": "--np",
    "--nproc-per-node": "--np",
    "--nproc": "--np",
    "--num_proc": "--np",
    "--num-proc": "--np",
    "-H": "--hosts",
    "--host": "--hosts",
    "--include": "--hosts",
    "--num_nodes": "--hosts",
    "--nnodes": "--hosts",
    "-hostfile": "--hostfile",
    "--machinefile": "--hostfile",
}


class _Hint(argparse.Action):
    """An option of another launcher: an error that names ours."""

    def __call__(self, parser, namespace, values, option_string=None):
        ours = _OTHER_SPELLINGS[option_string]
        value = "h1:4,h2:4" if ours == "--hosts" else values or "2"
        parser.error(f"{option_string} is {ours} here: gsnr-tf run {ours} {value} train.py")


def _ranks(text):
    """A number of ranks, or `auto`."""
    if text == "auto":
        return _auto()
    if not text.lstrip("-").isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number of ranks, and not auto")
    return int(text)


def _auto():
    """A rank for each GPU that may be used, or for each core."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        found = [name for name in visible.split(",") if name.strip() not in ("", "-1")]
    else:
        try:
            listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
            found = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
        except OSError:
            found = []
    return len(found) or len(os.sched_getaffinity(0))


def add_arguments(parser):
    parser.add_argument(
        "--np",
        type=_ranks,
        metavar="N",
        help="number of ranks (all that the hosts have room for); auto: one for each GPU of "
        "this host, or for each core where it has none",
    )
    for spelled in _OTHER_SPELLINGS:
        parser.add_argument(spelled, action=_Hint, nargs="?", help=argparse.SUPPRESS)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--hosts", metavar="H1:4,H2:4", help="hosts, and room for how many ranks")
    where.add_argument("--hostfile", metavar="FILE", help="lines such as `node1 slots=4`")
    where.add_argument(
        "--host-discovery-script",
        metavar="FILE",
        help="makes the job elastic: a program that prints the hosts there are now",
    )
    elastic = parser.add_argument_group("elastic jobs")
    elastic.add_argument("--min-np", type=int, metavar="N", help="wait below this many ranks")
    elastic.add_argument("--max-np", type=int, metavar="N", help="take no more ranks than this")
    elastic.add_argument(
        "--slots-per-host",
        type=int,
        metavar="N",
        help="for hosts that come without a number",
    )
    elastic.add_argument(
        "--reset-limit", type=int, metavar="N", help="give up after so many changes"
    )
    elastic.add_argument(
        "--blacklist-cooldown-range",
        type=int,
        nargs=2,
        metavar=("MIN", "MAX"),
        help="seconds until a host that failed may return (never)",
    )
    remote = parser.add_argument_group("several hosts")
    remote.add_argument("--ssh-port", type=int, metavar="PORT")
    remote.add_argument("--ssh-identity-file", metavar="FILE")
    remote.add_argument(
        "--network-interface", metavar="NAME", help="such as eth0 (found by trying)"
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=Job.grace,
        metavar="SECONDS",
        help="from telling ranks to end to ending them (%(default)g), as when this is "
        "stopped by SIGTERM; exit code 75 says that they have saved",
    )
    parser.add_argument(
        "--max-restarts",
        type=int,
        default=0,
        metavar="N",
        help="start again up to N times when the job fails (%(default)s); the script "
        "goes on from what it has saved",
    )
    parser.add_argument(
        "--output-dir",
        metavar="DIR",
        help="save what each rank prints, in DIR/rank-0.log, ...",
    )
    parser.add_argument(
        "-m",
        dest="module",
        action="store_true",
        help="the script is a module, as in python -m",
    )
    parser.add_argument("script", metavar="script.py ...", nargs=argparse.REMAINDER)


def job(args):
    """The `Job` that the arguments describe."""
    if args.script[:1] == ["--"]:
        args.script = args.script[1:]
    if not args.script:
        raise CannotStart("Which script? Write it last: gsnr-tf run --np 2 train.py")
    named = None
    if args.hosts is not None:
        named = hosts.parse(args.hosts)
    elif args.hostfile is not None:
        named = hosts.parse_file(args.hostfile)
    return Job(
        command=["-m", *args.script] if args.module else args.script,
        ranks=args.np,
        hosts=named,
        min_ranks=args.min_np,
        max_ranks=args.max_np,
        discovery=args.host_discovery_script,
        slots=args.slots_per_host,
        reset_limit=args.reset_limit,
        cooldown=args.blacklist_cooldown_range,
        ssh_port=args.ssh_port,
        ssh_identity=args.ssh_identity_file,
        interface=args.network_interface,
        folder=args.output_dir,
        grace=args.grace,
        max_restarts=args.max_restarts,
    )


def run(args):
    try:
        return job(args).run()
    except CannotStart as error:
        print(error, file=sys.stderr)
        return 2
