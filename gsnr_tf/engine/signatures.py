"""Which optimizers and schedules there are and what they take, without loading them.

A name of DeepSpeed's ("Adam") means its optimizer, the same name after "keras." Keras' own.
signatures.json has those of the oldest Keras that gsnr_tf works with, and of this
package. So a configuration is checked in no time, and its schema and its pages are the
same whatever Keras is installed. What the file does not know is looked up in the
installed Keras, which loads TensorFlow.

`gsnr-tf config signatures` writes anew what the file has of this package, and with the
option --keras, meant for the oldest Keras, the rest as well. A test compares it with what
is installed.
"""

import functools
import inspect
import json
from pathlib import Path
from typing import NamedTuple

from gsnr_tf.engine.deepspeed import table

FILE = Path(__file__).with_name("signatures.json")
REQUIRED = inspect.Parameter.empty
_KERAS = "keras."
_NO_OPTIMIZERS = ("Optimizer", "LossScaleOptimizer", "MultiOptimizer")


class Signature(NamedTuple):
    """What a configuration must know of a class.

    Attributes:
        name: String, the class' own.
        arguments: Dict from the arguments of its constructor, base classes included, to
            their defaults; `REQUIRED` where there is none.
        gsnr: Bool, whether it is an optimizer of the GSNR family.
        deepspeed: Bool, whether it is one of DeepSpeed's.
    """

    name: str
    arguments: dict
    gsnr: bool = False
    deepspeed: bool = False


@functools.cache
def _known():
    """Dicts of `Signature` by name: "optimizers", "deepspeed" and "schedules"."""
    sections = json.loads(FILE.read_text(encoding="utf-8"))

    def read(name, arguments, gsnr=False, deepspeed=False):
        # JSON has no word for "none": an argument without a default is written alone.
        pairs = [(entry, REQUIRED) if isinstance(entry, str) else entry
                 for entry in arguments]  # fmt: skip
        return Signature(name, dict(pairs), gsnr, deepspeed)

    return {
        section: {name: read(name, **entry) for name, entry in entries.items()}
        for section, entries in sections.items()
    }


def optimizers():
    """Dict of `Signature` by the name of an optimizer."""
    return _known()["optimizers"]


def schedules():
    """Dict of `Signature` by the name of a schedule."""
    return _known()["schedules"]


def names():
    """The names that `optimizer` knows, as one writes them, a list."""
    of_deepspeed = ["Adam", "AdamW", "Lamb", "SGD", "Lion", "Adagrad"]
    of_deepspeed += ["OneBitAdam", "ZeroOneAdam", "OneBitLamb"]
    others = {name: s.gsnr for name, s in optimizers().items() if name not in of_deepspeed}
    family = [name for name, gsnr in others.items() if gsnr]
    of_keras = [f"{_KERAS}{name}" for name, s in optimizers().items() if not s.gsnr]
    return [*family, *of_deepspeed, *of_keras]


def optimizer(name):
    """The `Signature` of an optimizer's name, in upper or lower case, or `None`."""
    if name.lower() in table.OPTIMIZERS:
        return _known()["deepspeed"][table.OPTIMIZERS[name.lower()][0]]
    name = _without_prefix(name)
    known = {one.lower(): signature for one, signature in optimizers().items()}
    if name.lower() in known:
        return known[name.lower()]
    found = _found(name)
    return signature_of(found) if found else None


def _without_prefix(name):
    return name[len(_KERAS) :] if name.lower().startswith(_KERAS) else name


def installed_class(name):
    """The optimizer class of a name, in upper or lower case, or `None`."""
    if name.lower() in table.OPTIMIZERS:
        from gsnr_tf.engine.deepspeed.optimizers import CLASSES

        return CLASSES[table.OPTIMIZERS[name.lower()][0]]
    return _found(_without_prefix(name))


def _found(name):
    return {known.lower(): rule for known, rule in _installed().items()}.get(name.lower())


@functools.cache
def _installed():
    """Optimizer classes by name: of the installed Keras and of the family."""
    import keras

    from gsnr_tf import optimizers as family
    from gsnr_tf.optimizers.gsnr import GSNROptimizer

    found = {
        name: rule
        for name, rule in vars(keras.optimizers).items()
        if isinstance(rule, type)
        and issubclass(rule, keras.optimizers.Optimizer)
        and name not in _NO_OPTIMIZERS
    }
    ours = [vars(family)[name] for name in family.__all__]
    found.update(
        {r.__name__: r for r in ours if isinstance(r, type) and issubclass(r, GSNROptimizer)}
    )
    return found


def signature_of(rule):
    """The `Signature` of a class that is loaded."""
    from gsnr_tf.engine.deepspeed.optimizers import CLASSES
    from gsnr_tf.optimizers.gsnr import GSNROptimizer

    found = {}
    for base in rule.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(base.__init__).parameters.values()
        named = [p for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD]
        found = {**{p.name: p.default for p in named}, **found}
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            break
    found.pop("self")
    name = rule.__name__
    return Signature(name, found, issubclass(rule, GSNROptimizer), name in CLASSES)


def _entry(signature):
    """A signature as JSON has it."""
    arguments = [
        # Keras 3.13 and later make the name up as an optimizer is made.
        name if default is REQUIRED else [name, None if name == "name" else default]
        for name, default in signature.arguments.items()
    ]
    kinds = {"gsnr": signature.gsnr, "deepspeed": signature.deepspeed}
    return {"arguments": arguments, **{kind: True for kind, is_one in kinds.items() if is_one}}


def current(keras=False):
    """What the file would hold if it were written now, a dict.

    Args:
        keras: Whether Keras' optimizers are to be as they are installed; otherwise they
            are as the file has them.
    """
    from gsnr_tf.engine.deepspeed.optimizers import CLASSES
    from gsnr_tf.schedules import DEEPSPEED

    old = json.loads(FILE.read_text(encoding="utf-8"))["optimizers"]
    kept = {} if keras else {n: e for n, e in old.items() if not e.get("gsnr")}
    found = {name: _entry(signature_of(rule)) for name, rule in _installed().items()}
    found = {name: e for name, e in found.items() if keras or e.get("gsnr")}
    return {
        "optimizers": dict(sorted({**kept, **found}.items())),
        "deepspeed": {name: _entry(signature_of(rule)) for name, rule in CLASSES.items()},
        "schedules": {name: _entry(signature_of(rule)) for name, rule in DEEPSPEED.items()},
    }


def write(keras=False):
    """Writes the file anew, a line for each class. See `current`."""
    sections = []
    for section, entries in current(keras).items():
        lines = [f"  {json.dumps(name)}: {json.dumps(e)}" for name, e in entries.items()]
        sections.append(f" {json.dumps(section)}: {{\n" + ",\n".join(lines) + "\n }")
    FILE.write_text("{\n" + ",\n".join(sections) + "\n}\n", encoding="utf-8")
