"""The package's shape, held by its source: who may import whom, one method a file, no torch before it is needed."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.methods import check_part
from helpers.paths import TESTS

import zoedge
from zoedge.core import parts

ROOT = Path(zoedge.__file__).parent
PARTS = [(kind, word) for kind, folder in parts.PART_FOLDERS.items() for word in parts.list_words(folder)]
# What of ours the files of a room may import, besides the room itself: a room, or a module of it by its dotted name.
ROOMS = {
    "errors": set(),
    "core": {"errors"},
    "log": {"core", "errors"},
    "methods": {"core", "errors"},
    "recipe": {"core", "errors"},
    "scoring": {"core.base", "core.parts", "core.types", "core.canonical", "core.child", "errors", "recipe.sections"},
    "run": {"core", "errors", "log", "methods", "recipe", "scoring"},
    "optim": {"core", "errors", "log", "methods", "recipe", "run"},
    "lab": {"core", "errors", "log", "methods", "recipe", "run", "scoring"},
    "commands": {"core", "errors", "log", "methods", "optim", "recipe", "run", "scoring", "lab"},
    "cli": {"commands", "core", "errors", "lab", "log", "methods", "optim", "recipe", "run", "scoring"},
    "__main__": {"cli", "run"},
    "__init__": {"commands", "errors", "optim"},
}
# a method is a file of its own: what it may share is private, but for the two kinds of noise that others are made of
SHARED = {"methods.noise.normal", "methods.noise.rademacher"}
LONGEST_FILE, LONGEST_FUNCTION, LONGEST_CLI_FUNCTION, MOST_ENTRIES = 450, 60, 30, 16
PRINTS = {
    "scoring.sources.cache",  # progress on standard error
    "run.display",
    "commands.estimate.measure",
    "commands.export.check",
    "scoring.tasks._sandbox",
}  # the last three are child processes, which answer on their output


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below zoedge."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports_of(path: Path) -> set[str]:
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
            inner = [n for n in names if (deeper / n).is_dir() or (deeper / f"{n}.py").is_file()]
            found |= {f"{whole}.{name}" for name in inner} or {whole}
    return {name.removeprefix("zoedge.") for name in found if name.split(".")[0] == "zoedge"}


def within(module: str, allowed: set[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


@pytest.mark.parametrize("room", ROOMS)
def test_an_import_only_goes_down(room: str) -> None:
    files = {name: path for name, path in modules().items() if name.split(".")[0] == room}
    assert files, "the room is there"
    for name, path in files.items():
        wrong = {module for module in imports_of(path) if not within(module, ROOMS[room] | {room})}
        assert not wrong, f"{name} imports {sorted(wrong)}"


def test_every_module_is_in_a_room() -> None:
    assert {name.split(".")[0] for name in modules()} == set(ROOMS)
    entries = [path for path in ROOT.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MOST_ENTRIES, sorted(path.name for path in entries)


def test_a_method_imports_no_other_method() -> None:
    methods = {name: path for name, path in modules().items() if name.startswith("methods.")}
    assert len(methods) > 30
    for name, path in methods.items():
        for module in imports_of(path):
            private = module.rpartition(".")[2].startswith("_")
            assert not module.startswith("methods.") or private or module in SHARED, f"{name} imports {module}"


def test_there_is_no_import_circle() -> None:
    """Lazy imports count too: a module that needs another one, which needs the first, is one module in two files."""
    there = modules()
    graph = {name: {module for module in imports_of(path) if module in there} - {name} for name, path in there.items()}
    for name in graph:  # `from . import x` of a package names its submodule, not the package
        graph[name] -= {
            module for module in graph[name] if name.startswith(f"{module}.") and there[module].name == "__init__.py"
        }
    assert sum(map(len, graph.values())) > 200, "the scan sees imports"
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"a circle: {' -> '.join((*trail[trail.index(name) :], name))}"
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_files_and_functions_are_short() -> None:
    for name, path in modules().items():
        text = path.read_text()
        assert len(text.splitlines()) <= LONGEST_FILE, f"{name}: {len(text.splitlines())} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                most = LONGEST_CLI_FUNCTION if name.startswith("cli") else LONGEST_FUNCTION
                assert length <= most, f"{name}.{node.name}: {length} lines"


def test_only_the_display_and_the_command_line_print() -> None:
    for name, path in modules().items():
        if name.split(".")[0] in ("cli", "__main__") or name in PRINTS:
            continue
        calls = [n.func for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        assert not [f for f in calls if isinstance(f, ast.Name) and f.id == "print"], name
        assert "typer" not in imports_of_others(path), name


def imports_of_others(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {
        name.split(".")[0]
        for name in plain | {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom) and not n.level}
    }


def test_the_scan_sees_every_way_to_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "core").mkdir()
    (tmp_path / "noise").mkdir()
    for name in ("types", "core/engine", "noise/_philox"):
        (tmp_path / f"{name}.py").write_text("")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "noise" / "x.py"
    for line, name in {
        "from ..types import Key": "types",
        "from ..core import engine": "core.engine",
        "import zoedge.core.engine": "core.engine",
        "from zoedge.core.engine import play": "core.engine",
        "from zoedge.core import engine as e": "core.engine",
        "from . import _philox": "noise._philox",
        "from ._philox import lookup": "noise._philox",
        "def f():\n    from ..core.engine import play": "core.engine",
    }.items():
        path.write_text(line)
        assert imports_of(path) == {name}, line
    path.write_text("import torch, typing\nfrom numpy import array")
    assert imports_of(path) == set()


LIGHT = """
import json, sys
import zoedge
first = sorted({name.split(".")[0] for name in sys.modules})
import zoedge.errors, zoedge.core.types, zoedge.core.parts, zoedge.log.log, zoedge.core.engine
import zoedge.recipe.check, zoedge.run.setup
import zoedge.scoring.sources.resolve
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
    assert {kind for kind, _ in PARTS} == set(parts.PART_FOLDERS) and len(PARTS) >= 6


@pytest.mark.parametrize("kind,word", PARTS)
def test_a_part_is_one_frozen_dataclass_named_as_its_file(kind: str, word: str) -> None:
    check_part(kind, word)


def test_methods_are_short() -> None:
    """One paper, one file, at most 80 lines."""
    checked = 0
    for folder in ("noise", "estimators", "rules"):
        for path in sorted((ROOT / "methods" / folder).glob("[!_]*.py")):
            count = len(path.read_text().splitlines())
            assert count <= 80, f"{path.relative_to(ROOT)}: {count} lines"
            checked += 1
    assert checked >= 6


def test_no_test_file_imports_a_test_file() -> None:
    """What tests share lies in tests/helpers; a fixture in conftest.py is asked for by its name."""
    tests = {path.stem for path in TESTS.rglob("test_*.py")} | {"conftest"}
    assert len(tests) > 70
    for path in sorted(TESTS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(alias.name for alias in node.names)]
            wrong = {word for name in names for word in name.split(".")} & tests
            assert not wrong, f"{path.relative_to(TESTS)} imports {sorted(wrong)}"
