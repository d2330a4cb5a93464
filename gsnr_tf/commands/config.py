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
    _add_reading(check)
    check.set_defaults(do=_check)
    convert = what.add_parser("convert", help="print a file of DeepSpeed's as it runs here")
    convert.add_argument("file", help="JSON file")
    _add_reading(convert)
    convert.set_defaults(do=_convert)
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


def _add_reading(parser):
    parser.add_argument(
        "--strict",
        action="store_true",
        help="refuse keys of DeepSpeed's that have no effect here, or run another way",
    )
    parser.add_argument(
        "--auto",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help='value of a key that is "auto" or missing, as initialize(auto=…) gives it; '
        "may be repeated",
    )


def _given(args):
    """Dict of what --auto says."""
    from gsnr_tf.engine import ConfigError

    found = {}
    for entry in args.auto:
        key, separator, text = entry.partition("=")
        if not separator:
            raise ConfigError(f"--auto needs KEY=VALUE, such as --auto lr=0.001. Received: {entry}")
        try:
            found[key] = json.loads(text)
        except ValueError:
            raise ConfigError(f"--auto {key}: {text!r} is no JSON value.") from None
    return found


def _check(args):
    import rich.box
    import rich.console
    import rich.table
    import rich.text

    from gsnr_tf.engine import ConfigError, explain, read

    try:
        config = read(
            args.file,
            make=args.make,
            auto=_given(args),
            strict=args.strict,
            ranks=args.np,
            needed=False,
        )
        rows = explain(config, args.np, rates=args.make)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    table = rich.table.Table(show_header=False, box=rich.box.SIMPLE)
    for row in rows:
        # Text, not markup: a path may hold brackets.
        table.add_row(*(rich.text.Text(str(cell)) for cell in row))
    rich.console.Console().print(table)
    return 0


def _convert(args):
    from gsnr_tf.engine import ConfigError
    from gsnr_tf.engine.deepspeed.convert import converted

    try:
        print(converted(args.file, auto=_given(args), strict=args.strict))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
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
