"""Runs a script on several ranks, after a look at whether the hosts can do it.

    gsnr-tf run --np 4 train.py --epochs 10
    gsnr-tf run --hosts node1:4,node2:4 train.py
    gsnr-tf run --np 2 --min-np 1 --max-np 8 --host-discovery-script ./hosts.sh train.py

Options before the script are for gsnr-tf, those after it for the script. Each line
that a rank prints comes with the rank's number. If a rank fails, all end, and its
traceback is what comes last. Variables HOROVOD_... work as with horovodrun.
"""

import argparse
import sys

from gsnr_tf.launch import CannotStart, Job, hosts

HELP = "a script on several ranks, of one host or many"


def add_arguments(parser):
    parser.add_argument(
        "--np",
        type=int,
        metavar="N",
        help="number of ranks (all that the hosts have room for)",
    )
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
