"""Compares base optimizers with GSNR, each tuned alike, on a task of yours or ours.

All contenders at a batch size try the same learning rates and values of a regularizer
with the same seeds; what is behind stops early. The validation split chooses, and what was
chosen is scored on the test split and compared with base seed by seed. A study that was
interrupted goes on where it was when the same command is given again.
"""

import argparse
import os
from pathlib import Path

from gsnr_tf.compare.baselines import NAMES as BASELINES
from gsnr_tf.rules import registry

HELP = "base against GSNR, each tuned alike, on a task"


# fmt: off
def add_arguments(parser):
    add = parser.add_argument
    add("task", metavar="TASK", help="task.py or task.py:Class, a gsnr_tf.compare.Task")
    add("--batch", type=_numbers, metavar="N,N", required=True,
        help="examples an update")
    add("--optimizers", type=_words, metavar="NAME,NAME", default=("lamb", "adam"),
        help=f"of {', '.join(registry.BY_NAME)} (default: lamb,adam)")
    add("--gsnr", action="append", metavar="FORM",
        help="a form of GSNR: arguments of its optimizers, such as "
        "'ceiling=10,second_moment=raw', 'weight_decay=0.01,clipnorm=1' or 'k=16'; may "
        "be repeated (default: 'ceiling=1')")
    add("--baselines", type=_words, metavar="NAME,NAME", default=(),
        help="optimizers of Keras to lead as well, without forms of theirs: "
        f"{', '.join(BASELINES)}")
    add("--samples", type=int, metavar="K", default=8,
        help="gradient samples an update, over all ranks (default: 8)")
    add("--np", type=int, metavar="N", default=1,
        help="ranks that train together (default: 1)")
    add("--trials", type=int, metavar="N", default=5,
        help="learning rates of the first grid, which all contenders try (default: 5)")
    add("--seeds", type=int, metavar="N", default=8,
        help="runs at the chosen setting of each (default: 8)")
    add("--growths", type=int, default=6, metavar="N",
        help="how often the grid may grow where somebody's best lies at its end (default: 6)")
    add("--first-seed", type=int, default=1, metavar="N", help="the first of them (default: 1)")
    add("--split", type=int, default=0, metavar="N",
        help="another test split than the task's own, to confirm what was chosen by that")
    add("--no-control", action="store_true",
        help="leave out the method switched off, where there is a base")
    add("--epochs", type=float, metavar="N", help="instead of the task's own")
    add("--target", type=float, metavar="SCORE", help="instead of the task's own")
    add("--size", default="default", help="one of the task's sizes")
    add("--jobs", type=int, metavar="N", help="runs at a time (default: cores / np)")
    add("--out", type=Path, metavar="DIR",
        help="run folder (default: runs/compare/TASK)")
# fmt: on


def _numbers(text):
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = (0,)
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list such as 1000,4000")
    return numbers


def _words(text):
    return tuple(filter(None, (word.strip() for word in text.split(","))))


def run(args):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

    from rich.console import Console

    from gsnr_tf.compare.progress import StudyProgress
    from gsnr_tf.compare.settings import Settings, check
    from gsnr_tf.compare.study import Study
    from gsnr_tf.compare.study_report import finish, plan
    from gsnr_tf.compare.task import check_split, checked, load_task
    from gsnr_tf.compare.workers import WorkerFailed

    console = Console()
    settings = Settings(
        task=args.task,
        size=args.size,
        epochs=args.epochs,
        target=args.target,
        batches=args.batch,
        optimizers=args.optimizers,
        forms=tuple(args.gsnr or ["ceiling=1"]),
        samples=args.samples,
        ranks=args.np,
        trials=args.trials,
        growths=args.growths,
        seeds=args.seeds,
        first_seed=args.first_seed,
        split=args.split,
        control=not args.no_control,
        baselines=args.baselines,
    )
    name = args.task.rpartition("/")[2].replace(".py", "").replace(":", "-")
    folder = args.out or Path("runs/compare") / name
    jobs = args.jobs or max(1, (os.cpu_count() or 1) // args.np)
    try:
        task = settings.apply_to(load_task(args.task, args.size))
        data = checked(task.load())
        check(settings, task, data)
        check_split(task)
        study = Study(settings, folder, task)
    except ValueError as error:
        console.print(f"gsnr-tf compare: {error}", style="red", highlight=False)
        return 2
    plan(study, jobs, console)
    try:
        with StudyProgress(study, console) as progress:
            study.run(jobs, progress)
    except KeyboardInterrupt:
        console.print("Interrupted. The same command goes on from here.")
        return 130
    except WorkerFailed as error:
        console.print(str(error), style="red", highlight=False, markup=False)
        return 1
    finish(study, task, console, task.groups(data.test.features))
    return 0
