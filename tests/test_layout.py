"""The package's shape, held by its source: who may import whom, one method a file, no torch before it is needed."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import zoedge
from zoedge import load

ROOT = Path(zoedge.__file__).parent
PARTS = [(kind, word) for kind, folder in load.FOLDERS.items() for word in load.words(folder)]
# of ours, a module may import at most these (and, in a folder, its private siblings): DESIGN.md, section 3
ALLOWED = {
    "types": set(),
    "errors": set(),
    "noise": {"types", "noise.normal", "noise.rademacher"},  # what others are made of
    "rules": {"types"},
    "spaces": {"types"},
    "estimators": {"types"},
    "watchdog": {"types"},
    "engine": {"log", "errors", "storage", "types", "watchdog"},
}
ZEROTH_ORDER = {"noise", "rules", "estimators", "spaces", "engine", "watchdog"}  # tasks and models know nothing of it


def ours(path: Path) -> set[str]:
    """What of ours a file imports anywhere, as dotted names below zoedge: from ..types import Key -> types."""
    package = ("zoedge", *path.relative_to(ROOT).parent.parts)
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            whole = ".".join(filter(None, (start, node.module)))
            deeper = ROOT.joinpath(*whole.split(".")[1:])
            names = [alias.name for alias in node.names if whole.startswith("zoedge") and deeper.is_dir()]
            modules = [n for n in names if (deeper / n).is_dir() or (deeper / f"{n}.py").is_file()]
            found |= {f"{whole}.{name}" for name in modules} or {whole}
    return {name.removeprefix("zoedge.") for name in found if name.split(".")[0] == "zoedge"}


def files(name: str) -> list[Path]:
    found = sorted((ROOT / name).rglob("*.py")) if (ROOT / name).is_dir() else [ROOT / f"{name}.py"]
    assert found and all(path.is_file() for path in found)
    return found


@pytest.mark.parametrize("name", ALLOWED)
def test_import_direction(name: str) -> None:
    for path in files(name):
        for module in ours(path):
            sibling = module.startswith(f"{name}._")
            assert sibling or module in ALLOWED[name], f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("name", ["tasks", "models"])
def test_tasks_and_models_know_nothing_of_zeroth_order(name: str) -> None:
    seen = set()
    for path in files(name):
        seen |= ours(path)
        assert not {module.split(".")[0] for module in ours(path)} & ZEROTH_ORDER, path
    assert "errors" in seen, "the scan sees imports"


def test_the_scan_sees_every_way_to_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "noise").mkdir()
    for name in ("types", "engine", "noise/_philox"):
        (tmp_path / f"{name}.py").write_text("")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "noise" / "x.py"
    for line, name in {
        "from ..types import Key": "types",
        "from .. import engine": "engine",
        "import zoedge.engine": "engine",
        "from zoedge.engine import play": "engine",
        "from zoedge import engine as e": "engine",
        "from . import _philox": "noise._philox",
        "from ._philox import lookup": "noise._philox",
        "def f():\n    from ..engine import play": "engine",
    }.items():
        path.write_text(line)
        assert ours(path) == {name}, line
    path.write_text("import torch, typing\nfrom numpy import array")
    assert ours(path) == set()


LIGHT = """
import json, sys
import zoedge
first = sorted({name.split(".")[0] for name in sys.modules})
import zoedge.types, zoedge.errors, zoedge.load, zoedge.log, zoedge.engine, zoedge.recipe, zoedge.runs, zoedge.sources
print(json.dumps([first, sorted({name.split(".")[0] for name in sys.modules})]))
"""
HEAVY = {
    "torch",
    "numpy",
    "transformers",
    "bitsandbytes",
    "peft",
    "accelerate",
    "pyarrow",
    "huggingface_hub",
    "tokenizers",
}


def test_importing_zoedge_imports_nothing_heavy() -> None:
    """`zoedge --help` in < 0.3 s: torch alone takes 1 to 2 s, transformers as much again."""
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], capture_output=True, text=True, timeout=60, cwd=ROOT.parent, check=False
    )
    assert done.returncode == 0, done.stderr[-1000:]
    first, later = (set(names) for names in json.loads(done.stdout))
    assert "zoedge" in first and not first & (HEAVY | {"pydantic", "yaml"})
    assert "pydantic" in later and not later & HEAVY


def test_there_are_parts() -> None:
    assert {kind for kind, _ in PARTS} == set(load.FOLDERS) and len(PARTS) >= 6


@pytest.mark.parametrize("kind,word", PARTS)
def test_a_part_is_one_frozen_dataclass_named_as_its_file(kind: str, word: str) -> None:
    part = load.part(kind, word)
    assert part.__name__ == "".join(w.capitalize() for w in word.split("_"))
    module = load.module(load.FOLDERS[kind], word)
    public = [
        c for n, c in vars(module).items() if inspect.isclass(c) and c.__module__ == module.__name__ and n[0] != "_"
    ]
    options = [c for c in public if dataclasses.is_dataclass(c) and c.__dataclass_params__.frozen]  # type: ignore[attr-defined]
    assert options == [part], "one method a file; a method's fields are its options"
    if kind in ("noise", "estimator", "rule"):  # a space or a task also defines what it makes
        assert public == [part]
    made = part()
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.something = 1
    assert part.__subclasses__() == [], "parts are final"
    assert [base for base in part.__mro__[1:] if base.__module__.split(".")[0] == "zoedge"][1:] == []
    assert made == part() and all(f.default is not None for f in dataclasses.fields(part)), "every option has a default"
    lines = (Path(module.__file__ or "").read_text()).splitlines()
    assert lines[0].startswith('"""') and len(lines[0]) > 20, "line 1 says what it does"


def test_methods_are_short() -> None:
    """One paper, one file, at most 80 lines."""
    checked = 0
    for folder in ("noise", "estimators", "rules"):
        for path in files(folder):
            count = len(path.read_text().splitlines())
            assert count <= 80, f"{path.relative_to(ROOT)}: {count} lines"
            checked += 1
    assert checked >= 6
