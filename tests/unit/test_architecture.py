"""Which way things depend on each other."""

import ast
from pathlib import Path

import pytest

import gsnr_tf

PACKAGE = Path(gsnr_tf.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
# Below the optimizer: what it is made of knows nothing of it.
GROUND = ("stats", "rules", "comm", "sharding", "schedules")
ALLOWED = {
    "stats": {"_sound_samples", "stats"},
    "rules": {"rules"},
    "comm": {"_lazy", "comm"},
    "schedules": {"schedules"},
    "sharding": {"comm", "rules", "sharding", "stats"},
}


def imported(path):
    """The rooms of the package that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.startswith("gsnr_tf."):
                yield name.split(".")[1]


@pytest.mark.parametrize("room", GROUND)
def test_the_ground_knows_nothing_of_what_stands_on_it(room):
    for path in (PACKAGE / room).rglob("*.py"):
        assert set(imported(path)) <= ALLOWED[room], path


def private_reads(path):
    """Attributes with an underscore that are read of something called an optimizer."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
            continue
        if node.attr.startswith("__"):
            continue
        owner = ast.unparse(node.value)
        last = owner.rsplit(".", 1)[-1].split("(")[0]
        if last in ("optimizer", "_optimizer", "inner", "_inner", "inner_optimizer"):
            yield f"{path.relative_to(PACKAGE)}:{node.lineno} {owner}.{node.attr}"


def test_only_the_optimizers_read_what_is_private_to_them():
    elsewhere = [p for p in FILES if p.relative_to(PACKAGE).parts[0] != "optimizers"]
    assert [read for path in elsewhere for read in private_reads(path)] == []


def test_the_search_for_private_reads_finds_them(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    path = tmp_path / "a.py"
    path.write_text("self._optimizer._layout\ninner(model)._x\nmodel.optimizer.fine\n")
    assert len(list(private_reads(path))) == 2
