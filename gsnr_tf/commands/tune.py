"""Finds the fastest micro-batch for a job, by running it for a few updates."""

import argparse
import functools
import json
import shutil
import sys
from pathlib import Path

HELP = "find the fastest micro-batch and bucket size for a job"


def add_arguments(parser):
    parser.add_argument("config", help="JSON file that the script reads as well")
    parser.add_argument("--np", type=int, default=1, help="number of ranks (default: 1)")
    parser.add_argument(
        "--seconds", type=float, default=600, help="limit of a trial (default: 600)"
    )
    parser.add_argument("script", help="the job: a Python script")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="what the script is given")


def run(args):
    from gsnr_tf.engine import ConfigError, read, tune
    from gsnr_tf.launch import CannotStart

    try:
        config = read(args.config)
        folder = Path(config.autotuning.results_dir)
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("trial-*"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        run_one = functools.partial(
            tune.run_trial,
            ranks=args.np,
            command=[args.script, *args.arguments],
            folder=folder,
            seconds=args.seconds,
        )
        results = tune.search(config, args.np, run_one, _tell)
    except (CannotStart, ConfigError) as error:
        print(error, file=sys.stderr)
        return 1
    found = tune.best(results)
    if found is None:
        print("Every trial failed.", file=sys.stderr)
        return 1
    return _write(Path(args.config), folder, found)


def _tell(result):
    tried = f"micro-batch {result.changes['train_micro_batch_size_per_gpu']}"
    zero = result.changes.get("zero_optimization")
    if zero:
        tried += f", reduce_bucket_size {zero['reduce_bucket_size']}"
    if result.failure:
        told = f"failed: {result.failure}"
    else:
        told = f"{result.throughput:.0f} examples/s, {result.memory / 2**20:.0f} MiB"
    print(f"{tried}: {told}", flush=True)


def _write(source, folder, found):
    from gsnr_tf.engine.load import parsed
    from gsnr_tf.engine.tune_trial import merged

    values = merged(parsed(source), found.changes)
    values["autotuning"]["enabled"] = False
    path = folder / "config.json"
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    print(f"The fastest is in {path}.")
    return 0
