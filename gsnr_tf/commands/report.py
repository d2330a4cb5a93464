"""Makes a page of what GSNRMonitor recorded: one HTML file that needs no network."""

import sys
from pathlib import Path

HELP = "a page of what a run recorded"


def add_arguments(parser):
    parser.add_argument("folder", metavar="RUN_DIR", help="the log_dir of a GSNRMonitor")
    parser.add_argument(
        "--output", type=Path, help="the file to write; defaults to RUN_DIR/report.html"
    )


def run(args):
    # Drawing takes matplotlib, which training does not.
    from gsnr_tf.monitor import run_report

    try:
        path = run_report.write(args.folder, args.output)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"wrote {path}")
    return 0
