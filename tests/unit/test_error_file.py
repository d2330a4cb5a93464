"""What a rank writes down of the error that ends it."""

import json
import multiprocessing
import os
import subprocess
import sys

import pytest

from gsnr_tf.comm import error_file


@pytest.fixture
def hooked(monkeypatch, tmp_path):
    """The path of the error file, and what the hook that was there before has got."""
    got = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: got.append(error))
    monkeypatch.setenv("GSNR_TF_ERROR_FILE", str(tmp_path / "error.json"))
    return tmp_path / "error.json", got


def raised(error):
    try:
        try:
            {}["lost"]
        except KeyError as cause:
            raise error from cause
    except BaseException as caught:
        return type(caught), caught, caught.__traceback__


def test_what_nothing_catches_is_recorded_with_its_cause(hooked):
    path, got = hooked
    error_file.install()
    error = raised(ValueError("no table"))
    sys.excepthook(*error)
    found = json.loads(path.read_text())
    assert (found["type"], found["message"]) == ("ValueError", "no table")
    assert "KeyError: 'lost'" in found["traceback"].splitlines()
    assert found["traceback"].endswith("ValueError: no table\n")
    assert found["time"] > 1.7e9
    assert got == [error]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_an_interrupt_is_no_error_and_a_full_disk_hides_none(hooked, monkeypatch):
    path, got = hooked
    error_file.install()
    sys.excepthook(*raised(KeyboardInterrupt()))
    assert not path.exists()
    monkeypatch.setattr(error_file.os, "replace", lambda *_: 1 / 0)
    sys.excepthook(*raised(ValueError()))
    assert [kind for kind, *_ in got] == [KeyboardInterrupt, ValueError]


def test_long_messages_are_cut_at_their_beginning(tmp_path):
    error = raised(ValueError("x" * 10**6 + "the end"))
    error_file.record(tmp_path / "error.json", *error)
    found = json.loads((tmp_path / "error.json").read_text())
    assert len(found["message"]) < 10**5 and found["message"].endswith("the end")
    assert found["traceback"].endswith("the end\n")


def test_without_our_launcher_nothing_is_recorded(hooked, monkeypatch):
    before = sys.excepthook
    monkeypatch.delenv("GSNR_TF_ERROR_FILE")
    error_file.install()
    assert sys.excepthook is before


def test_a_process_that_a_rank_starts_is_not_the_rank(hooked):
    path, _ = hooked
    child = multiprocessing.get_context("spawn").Process(target=_install_and_fail)
    child.start()
    child.join(300)
    assert child.exitcode == 1 and not path.exists()


def _install_and_fail():
    error_file.install()
    sys.excepthook(*raised(ValueError("of a child")))
    sys.exit(1)


@pytest.mark.parametrize(
    ("end", "left"), [("sys.exit(0)", True), ("sys.exit(3)", True), ("1 / 0", False)]
)
def test_a_rank_that_leaves_says_so(hooked, end, left):
    path, _ = hooked
    code = (
        "import sys, runpy; found = runpy.run_path(sys.argv[1]); "
        f"found['install'](); found['note_exit'](); {end}"
    )
    command = [sys.executable, "-c", code, error_file.__file__]
    subprocess.run(command, capture_output=True, timeout=300)
    found = json.loads(path.read_text())
    assert found["left"] == left
    assert (found.get("type") == "ZeroDivisionError") == (not left)


def test_importing_the_package_is_enough(tmp_path):
    path = tmp_path / "error.json"
    ran = subprocess.run(
        [sys.executable, "-c", "import gsnr_tf.comm; raise ValueError('mine')"],
        env={**os.environ, "GSNR_TF_ERROR_FILE": str(path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 1 and "ValueError: mine" in ran.stderr
    assert json.loads(path.read_text())["message"] == "mine"
