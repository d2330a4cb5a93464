"""What a study is asked to do, and whether it can."""

import dataclasses
import itertools
import json
from pathlib import Path

from gsnr_tf.compare import baselines
from gsnr_tf.compare.contenders import RULES, Contender, contenders_of, parse_form
from gsnr_tf.compare.race import GROWTHS
from gsnr_tf.compare.task import check_regularizer
from gsnr_tf.compare.training import updates_of

# With more, each would have to be far ahead to be told from chance.
NAMED = 6


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `gsnr-tf compare` was told. JSON can hold all of it.

    Attributes:
        task: "file.py" or "file.py:Class".
        size: One of the task's sizes.
        epochs: Number, or `None` for the task's own.
        target: Number, or `None` for the task's own.
        batches: Tuple of ints.
        optimizers: Tuple of keys of `contenders.RULES`.
        forms: Tuple of the forms of GSNR, as text.
        baselines: Tuple of `baselines.NAMES`: optimizers of Keras without forms of ours.
        samples: Int, k of all that do not say.
        ranks: Int, processes that train together.
        trials: Int, learning rates of the first grid.
        seeds: Int, runs at the chosen setting.
        first_seed: Int, the first of them.
        growths: Int, how often the grid may grow.
        split: Int, which of a task's test splits; see `Task.split`.
        control: Whether the method switched off is a contender as well.
    """

    task: str
    batches: tuple
    optimizers: tuple
    forms: tuple
    size: str = "default"
    epochs: float | None = None
    target: float | None = None
    samples: int = 8
    ranks: int = 1
    trials: int = 5
    seeds: int = 8
    first_seed: int = 1
    split: int = 0
    control: bool = True
    baselines: tuple = ()
    growths: int = GROWTHS

    def apply_to(self, task):
        """Gives a task the epochs, the target and the split of this study."""
        task.split = self.split
        if self.epochs is not None:
            task.epochs = self.epochs
        if self.target is not None:
            task.target = self.target
        return task

    def cells(self):
        """Every contender at every batch, the list of `Cell` to work on."""
        forms = [parse_form(form) for form in self.forms]
        found = [
            Cell(contender, batch)
            for rule, batch in itertools.product(self.optimizers, self.batches)
            for contender in contenders_of(rule, forms, self.samples, self.control)
        ]
        found += [
            Cell(Contender(name, "base", self.samples), batch)
            for name, batch in itertools.product(self.baselines, self.batches)
        ]
        return list(dict.fromkeys(found))

    def named(self):
        """The comparisons with base that the verdict is about, at most `NAMED`: a list of
        `Cell`, forms in the order they were asked for. All others are exploratory."""
        forms = [cell for cell in self.cells() if cell.contender.kind == "gsnr"]
        return forms[:NAMED]

    def write(self, folder):
        """Saves them in a run folder, or makes sure that the same are there.

        Raises:
            ValueError: The folder holds another study.
        """
        file = folder / "study.json"
        mine = json.loads(json.dumps(dataclasses.asdict(self)))
        if file.exists():
            theirs = json.loads(file.read_text())
            differing = [name for name in mine if mine[name] != theirs.get(name)]
            if differing:
                raise ValueError(
                    f"{folder} holds another study: "
                    + "; ".join(
                        f"{name} is {theirs.get(name)} there and {mine[name]} here"
                        for name in differing
                    )
                    + ". Name another folder with --out, or ask for the same."
                )
            return
        folder.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(".new")
        aside.write_text(json.dumps(mine, indent=1) + "\n")
        aside.rename(file)

    @classmethod
    def read(cls, folder):
        """The settings of a run folder."""
        values = json.loads((Path(folder) / "study.json").read_text())
        tuples = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
        return cls(**{**values, **tuples})


@dataclasses.dataclass(frozen=True)
class Cell:
    """One contender at one batch size: what a learning rate is searched for."""

    contender: Contender
    batch: int

    @property
    def name(self):
        """Unique within a study."""
        k = self.contender.samples
        return f"{self.contender.rule} {self.batch} {self.contender.label} k={k}"


def check(settings, task, data):
    """Raises ValueError where the settings do not fit the task."""
    counts = ("samples", "ranks", "trials", "seeds", "first_seed")
    for name in counts:
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} starts at 1. Received: {getattr(settings, name)}")
    if settings.growths < 0:
        raise ValueError(f"growths starts at 0. Received: {settings.growths}")
    if settings.trials < 3:
        raise ValueError(
            f"A grid needs three learning rates or more. Received: trials={settings.trials}"
        )
    check_regularizer(task)
    for rule in settings.optimizers:
        if rule not in RULES:
            raise ValueError(f"The optimizers are {', '.join(RULES)}. Received: {rule!r}")
    for name in settings.baselines:
        if name not in baselines.NAMES:
            raise ValueError(f"The baselines are {', '.join(baselines.NAMES)}. Received: {name!r}")
    for cell in settings.cells():
        k = cell.contender.samples
        if k < 2 or k % settings.ranks:
            raise ValueError(
                "k, the samples of an update, must be 2 or more and a multiple of the "
                f"ranks ({settings.ranks}). Received: k={k}"
            )
        if cell.batch % k:
            near = max(k, round(cell.batch / k) * k)
            raise ValueError(
                f"A batch must be a multiple of its {k} samples. Received: "
                f"{cell.batch}. Near it: {near}."
            )
        if updates_of(task, data.train.rows, cell.batch) < 1:
            raise ValueError(
                f"{task.epochs:g} epochs of {data.train.rows:,} examples hold no batch "
                f"of {cell.batch:,}. Take a smaller batch or more epochs."
            )
