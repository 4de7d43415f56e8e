"""Child processes: nothing from the user's current folder is imported, signals and errors come through."""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import zoedge as package
from zoedge.core import child

DECOY = "import pathlib\npathlib.Path(__file__).with_suffix('.imported').write_text('')\nraise SystemExit(99)\n"


@pytest.fixture
def decoys(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Modules of libraries' names in the current folder; returns which of them somebody has imported."""
    folder = recipe_file.parent
    for name in ("torch", "json", "zoedge", "pip", "jinja2"):
        (folder / f"{name}.py").write_text(DECOY)
    monkeypatch.chdir(folder)
    return lambda: sorted(path.name for path in folder.rglob("*.imported"))


def test_estimate_measure_imports_nothing_from_here(decoys: Any, recipe_file: Path, zoedge: Any) -> None:
    done = zoedge("estimate", recipe_file, "--measure")
    assert done.code == 0 and "measured" in done.out and decoys() == []


def test_sweep_imports_nothing_from_here(decoys: Any, recipe_file: Path, zoedge: Any) -> None:
    Path("s.yaml").write_text("rule.lr: [1e-3]\n")
    done = zoedge("sweep", recipe_file, "s.yaml", "train.steps=2")
    assert done.code == 0 and decoys() == []


def test_export_check_imports_nothing_from_here(decoys: Any, recipe_file: Path, zoedge: Any) -> None:
    assert zoedge("finetune", recipe_file, "train.steps=2", "--run-dir", "run").code == 0
    done = zoedge("export", "run", "--to", "peft", "-o", "out", "--check")
    assert done.code == 0 and decoys() == []


def test_a_template_and_pip_import_nothing_from_here(decoys: Any, tokenizer: Any) -> None:
    from zoedge.scoring.tasks.chat import render_chats

    chats = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]]
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert render_chats(template, chats, tokenizer)[0]["texts"][0]["text"] == "hiho"
    assert child.run_python(["-m", "pip", "--version"], "pip").startswith("pip ") and decoys() == []


def test_a_child_that_fails_is_one_sentence() -> None:
    for code, reason, exit_code in (
        ("import sys; print('a\\nb', file=sys.stderr); sys.exit(7)", "b", 7),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL", 137),
        ("raise SystemExit(3)", "exit code 3", 3),
    ):
        with pytest.raises(child.ChildFailed) as e:
            child.run_python(["-c", code], "The child")
        assert e.value.reason == reason and e.value.exit_code == exit_code
    with pytest.raises(child.ChildFailed, match="it gave no answer"):
        child.ask_python(["-c", "print('no JSON')"], "The child", {})
    with pytest.raises(child.ChildFailed, match=r"it took more than 0\.2 s"):
        child.run_python(["-c", "import time; time.sleep(60)"], "The child", timeout=0.2)


def test_a_childs_answer_is_its_last_line() -> None:
    code = "import json, sys; print('noise'); print(json.dumps(json.load(sys.stdin)['x'] + 1))"
    assert child.ask_python(["-c", code], "The child", {"x": 2}) == 3


def test_a_child_finds_this_zoedge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep)  # an empty entry would be the current folder
    code = "import json, sys, zoedge; print(json.dumps([zoedge.__file__, sys.path]))"
    file, path = json.loads(child.run_python(["-c", code], "The child"))
    assert Path(file) == Path(package.__file__ or "") and "" not in path and str(tmp_path) not in path


def test_only_one_module_starts_children() -> None:
    root = Path(package.__file__ or "").parent
    users = set()
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            started = isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.executable"
            if "subprocess" in names or "multiprocessing" in names or started:
                users.add(path.relative_to(root).as_posix())
    assert users == {"core/child.py"}, sys.version
