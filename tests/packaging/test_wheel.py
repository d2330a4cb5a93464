"""The wheel, outside of the tree: what it carries, and that it is of use by itself."""

import email
import re
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from gsnr_tf._version import __version__
from tests.processes import ROOT, python, run

SECONDS = 300
SOURCES = ("LICENSE", "README.md", "setup.py")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy: setuptools writes beside the sources."""
    folder = tmp_path_factory.mktemp("build")
    tree = folder / "tree"
    ignored = shutil.ignore_patterns("__pycache__")
    # The scripts that the package links to, too.
    for name in ("gsnr_tf", "horovod_scripts"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignored)
    for name in SOURCES:
        shutil.copy(ROOT / name, tree)
    done = run(
        python("-m", "pip", "wheel", "--use-pep517", "--no-build-isolation", "--no-deps",
               "--no-index", "--quiet", "--wheel-dir", folder, tree),
        SECONDS,
    )  # fmt: skip
    assert done.code == 0, done.output
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with what the wheel installs."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def outside(folder, *arguments):
    """Runs Python where no source tree is, with the package of the wheel alone."""
    return run(
        python("-P" if sys.version_info >= (3, 11) else "-B", *arguments),
        SECONDS,
        PYTHONPATH=str(folder),
    )


ALONE = """
import os, sys
for name in ("horovod", "psutil"):
    sys.modules[name] = None
os.chdir(sys.argv.pop(1))
"""


def test_it_answers_and_trains_without_horovod(installed, tmp_path):
    command = ALONE + "from gsnr_tf.cli import main; main()"
    done = outside(installed, "-c", command, tmp_path, "--version")
    assert (done.code, done.output.strip()) == (0, __version__)
    train = f"""{ALONE}
import gsnr_tf, keras, numpy as np
assert gsnr_tf.__file__.startswith({str(installed)!r}), gsnr_tf.__file__
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile(gsnr_tf.GSNRSGD(0.01, gradient_accumulation_steps=2), "mse")
model.fit(np.ones((8, 2)), np.ones((8, 1)), batch_size=2, verbose=0)
print("trained", model.optimizer.iterations.numpy())
"""
    done = outside(installed, "-c", train, tmp_path)
    assert done.code == 0 and "trained" in done.output, done.output


def test_it_has_what_messages_and_docstrings_point_to(installed):
    named = set()
    for source in (installed / "gsnr_tf").rglob("*.py"):
        text = source.read_text(encoding="utf-8")
        # "bash horovod_scripts/x.sh" would be a file of the source tree.
        assert "bash horovod_scripts/" not in text, source
        named |= set(re.findall(r"gsnr_tf/[\w/]+\.md", text))
    assert named
    for name in named:
        assert (installed / name).is_file(), name
    pages = {path.relative_to(ROOT) for path in (ROOT / "gsnr_tf").rglob("*.md")}
    assert pages and all((installed / page).is_file() for page in pages)


def test_it_brings_the_script_that_builds_horovod(installed, tmp_path):
    script = installed / "gsnr_tf" / "launch" / "install_horovod.sh"
    assert script.read_text() == (ROOT / "horovod_scripts" / "install_horovod.sh").read_text()
    # Stands for bash: says what it was called with.
    bash = tmp_path / "bash"
    bash.write_text('#!/bin/sh\necho "called: $@"\n')
    bash.chmod(0o755)
    command = f"""{ALONE}
os.environ["PATH"] = {str(tmp_path)!r} + os.pathsep + os.environ["PATH"]
from gsnr_tf.cli import main
main(["install-horovod", "--rebuild"])
"""
    done = outside(installed, "-c", command, tmp_path)
    assert f"called: {script} --rebuild {sys.executable}" in done.output, done.output


def test_its_facts_are_those_of_the_project(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (n for n in names if n.endswith(".dist-info/METADATA"))
        facts = email.message_from_string(archive.read(metadata).decode())
        (licence,) = (n for n in names if Path(n).name == "LICENSE")
        assert "Apache License" in archive.read(licence).decode()
    assert facts["Version"] == __version__
    assert "Apache-2.0" in (facts["License"] or facts["License-Expression"])
    assert facts["Author"] == "the gsnr_tf authors"
    assert facts.get_payload().startswith("# gsnr_tf")
    assert not any(name.startswith("tests") for name in names)
