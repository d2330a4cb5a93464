"""Checks and explains the configuration of the engine."""

import json
import sys

HELP = "check a configuration, or print its schema"


def add_arguments(parser):
    what = parser.add_subparsers(dest="what", required=True)
    check = what.add_parser("check", help="say what a file comes to, or what is wrong")
    check.add_argument("file", help="JSON file")
    check.add_argument("--np", type=int, default=1, help="number of ranks (default: 1)")
    check.add_argument(
        "--make",
        action="store_true",
        help="make optimizer and schedule, too: checks the values of their arguments and "
        "tells some learning rates; loads TensorFlow",
    )
    check.set_defaults(do=_check)
    schema = what.add_parser("schema", help="print the JSON Schema, for editors")
    schema.set_defaults(do=_schema)
    docs = what.add_parser("docs", help="write the reference pages anew")
    docs.set_defaults(do=_docs)
    signatures = what.add_parser(
        "signatures", help="write anew which arguments optimizers and schedules take"
    )
    signatures.add_argument(
        "--keras", action="store_true", help="those of Keras' own optimizers as well"
    )
    signatures.set_defaults(do=_signatures)


def _check(args):
    import rich.box
    import rich.console
    import rich.table

    from gsnr_tf.engine import ConfigError, explain, read

    try:
        config = read(args.file, make=args.make)
        rows = explain(config, args.np, rates=args.make)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    table = rich.table.Table(show_header=False, box=rich.box.SIMPLE)
    for row in rows:
        table.add_row(*map(str, row))
    rich.console.Console().print(table)
    return 0


def _schema(args):
    from gsnr_tf.engine import schema

    print(json.dumps(schema(), indent=2, ensure_ascii=False))
    return 0


def _docs(args):
    from gsnr_tf.engine import docs

    for path in docs.write():
        print(path)
    return 0


def _signatures(args):
    from gsnr_tf.engine import signatures

    signatures.write(args.keras)
    print(signatures.FILE)
    return 0


def run(args):
    return args.do(args)
