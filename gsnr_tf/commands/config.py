"""Checks and explains the configuration of the engine."""

import json
import sys

import rich.box
import rich.console
import rich.table

HELP = "check a configuration, or print its schema"


def add_arguments(parser):
    what = parser.add_subparsers(dest="what", required=True)
    check = what.add_parser("check", help="say what a file comes to, or what is wrong")
    check.add_argument("file", help="JSON file")
    check.add_argument("--np", type=int, default=1, help="number of ranks (default: 1)")
    check.set_defaults(do=_check)
    schema = what.add_parser("schema", help="print the JSON Schema, for editors")
    schema.set_defaults(do=_schema)
    docs = what.add_parser("docs", help="write the reference pages anew")
    docs.set_defaults(do=_docs)


def _check(args):
    from gsnr_tf.engine import ConfigError, explain, read

    try:
        rows = explain(read(args.file), args.np)
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


def run(args):
    return args.do(args)
