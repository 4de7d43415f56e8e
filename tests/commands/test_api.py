"""zoedge.finetune and zoedge.replay are the commands; the pages' code runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.paths import ROOT

import zoedge as package
from zoedge.commands.finetune import load_recipe
from zoedge.errors import DataError, IdentityError, UsageError, ZoedgeError
from zoedge.recipe.reading import read_recipe

DOCS = ROOT / "docs"


def test_the_package_is_light_and_lists_what_it_has() -> None:
    code = """
import sys, zoedge
assert {"finetune", "replay", "optim", "errors", "ZoedgeError", "__version__"} <= set(dir(zoedge))
assert not {"torch", "numpy", "pydantic"} & set(sys.modules)
assert zoedge.ZoedgeError is zoedge.errors.ZoedgeError and "torch" not in sys.modules
zoedge.finetune, zoedge.replay
assert "torch" not in sys.modules
from zoedge import optim
assert optim.ZerothOrder is zoedge.optim.ZerothOrder and "torch" in sys.modules
try:
    zoedge.nothing
except AttributeError as e:
    assert str(e) == "module 'zoedge' has no attribute 'nothing'"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=DOCS.parent, check=False)
    assert done.returncode == 0, done.stderr[-500:]


def test_finetune_is_the_command(zoedge: Any, recipe_file: Path, tmp_path: Path, capsys: Any) -> None:
    assert zoedge("finetune", recipe_file, "--quiet", "--run-dir", tmp_path / "a").code == 0
    table = yaml.safe_load(recipe_file.read_text())
    table["rule"]["lr"], table["estimator"]["eps"] = 0.5, 1e-2
    outcome = package.finetune(table, "rule.lr=1e-2", {"train.steps": 24}, run_dir=tmp_path / "b")
    assert capsys.readouterr().out == "", "quiet"
    assert (tmp_path / "a" / "run.zlog").read_bytes() == (tmp_path / "b" / "run.zlog").read_bytes()
    assert outcome.folder == tmp_path / "b" and outcome.steps == outcome.at == 24
    assert outcome.before and outcome.after and 0 <= (outcome.after.accuracy or 0) <= 1
    again = package.finetune(recipe_file, run_dir=tmp_path / "b", display="plain")
    assert again.fingerprint == outcome.fingerprint and "finished already" in capsys.readouterr().out
    with pytest.raises(UsageError, match="holds a run already"):
        package.finetune(recipe_file, run_dir=tmp_path / "b", resume="never")
    with pytest.raises(IdentityError, match=r"rule.lr 0.01 -> 0.02"):
        package.finetune(recipe_file, {"rule.lr": 0.02}, run_dir=tmp_path / "b")


def test_replay_is_the_command(zoedge: Any, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    found = package.replay("runs/tiny")
    assert found.save(tmp_path / "ours") == tmp_path / "ours" and found.kind == "adapter"
    done = zoedge("replay", "runs/tiny", "-o", tmp_path / "theirs")
    assert done.code == 0 and f"state {found.state[:16]}; adapter " in done.out
    for path in (tmp_path / "theirs").iterdir():
        assert path.read_bytes() == (tmp_path / "ours" / path.name).read_bytes(), path.name
    marker = json.loads((finished / "runs" / "tiny" / "adapter" / "zoedge.json").read_text())
    assert (found.fingerprint, found.state, found.steps) == (marker["log"], marker["state"], marker["steps"])
    assert {name.rpartition(".")[2] for name in found.tensors} == {"lora_A", "lora_B"}
    assert all(value.dtype == torch.float32 for value in found.tensors.values())
    first = package.replay(finished / "runs" / "tiny" / "run.zlog", at=0)
    assert first.steps == 0 and not any(v.any() for k, v in first.tensors.items() if k.endswith("lora_B"))
    assert package.replay("runs/tiny", at="last").state == found.state


def test_a_recipe_may_be_a_file_a_name_a_table_or_itself(recipe_file: Path) -> None:
    whole = read_recipe(str(recipe_file))
    table = {**whole.resolved(), "data": {**whole.resolved()["data"], "train": Path(whole.data.train)}}
    for given in (recipe_file, str(recipe_file), table, whole):
        assert load_recipe(given).resolved() == whole.resolved()
    assert load_recipe(whole, ("seed=9",)).seed == 9 and load_recipe("quickstart").name == "quickstart"
    assert load_recipe({k: v for k, v in table.items() if k != "name"}).name == "run"
    assert load_recipe(table, ({"space.targets": ["k_proj"], "seed": 3}, "rule.lr=2e-6")).rule.lr == 2e-6
    assert table["seed"] == whole.seed, "the caller's table is as it was"


@pytest.mark.parametrize(
    "recipe,overrides,said",
    [
        ("nothing", (), "No recipe 'nothing'"),
        (3, (), "recipe: 3 is not a file, a shipped recipe's name, or a recipe's table"),
        ({"model": {"source": object()}}, (), "The recipe holds what no recipe can"),
        ({"version": 1}, (), "the recipe: model: missing"),
        ({"version": 1, "model": {"source": "m"}, "data": {"train": "d"}, "lora_r": 3}, (), "calls this 'space.rank'"),
        ("quickstart", ("rule.lr",), "'rule.lr' is not key=value"),
        ("quickstart", (3,), "'3' is not key=value"),
        ("quickstart", ({"rule.lr": "fast"},), "rule.lr: 'fast' is not a number"),
        ("quickstart", ({"seed": {1, 2}},), "The recipe holds what no recipe can"),
    ],
)
def test_a_recipes_mistakes_get_the_commands_sentences(recipe: Any, overrides: Any, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        package.finetune(recipe, *overrides)


def test_other_mistakes_get_sentences(recipe_file: Path, tmp_path: Path, finished: Path) -> None:
    for options, said in (
        ({"resume": "perhaps"}, "resume: 'perhaps' is not auto or never"),
        ({"display": "loud"}, "display: 'loud' is not quiet, plain, json or auto"),
    ):
        with pytest.raises(UsageError, match=said):
            package.finetune(recipe_file, **options)
    with pytest.raises(DataError):
        package.finetune(recipe_file, {"data.train": "gone.jsonl"})
    run = finished / "runs" / "tiny"
    for at, device, said in (
        (99, "cpu", "--at 99"),
        ("soon", "cpu", "--at soon"),
        (-1, "cpu", "--at -1"),
        (1, "tpu", "'tpu'"),
    ):
        with pytest.raises(UsageError, match=said):
            package.replay(run, at, device=device)
    with pytest.raises(ZoedgeError, match="No run 'nowhere'"):
        package.replay("nowhere")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("of the user's")
    with pytest.raises(UsageError, match="is not an export of zoedge"):
        package.replay(run).save(tmp_path / "mine")


def test_another_thread_may_train(recipe_file: Path) -> None:
    """Python lets the main thread alone handle signals."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(package.finetune(recipe_file, "train.steps=3"))
        except BaseException as e:
            found.append(e)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert getattr(found[0], "steps", None) == 3, found


@pytest.mark.parametrize("page", ["python.md", "share.md"])
def test_the_pages_code_runs(page: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python blocks of a page, in order and in one program; of `zoedge` lines, each command with exit code 0."""
    for name in ("model", "rows.jsonl", "my.yaml"):
        (shutil.copytree if (finished / name).is_dir() else shutil.copyfile)(finished / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    blocks = re.findall(r"```(python|sh)\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.S)
    assert blocks
    for language, code in blocks:
        if language == "python":
            exec(compile(code, page, "exec"), names)
            continue
        for line in code.splitlines():
            argv = line.partition("#")[0].split()
            if argv[:1] == ["zoedge"] and not any(word.isupper() for word in argv):
                from zoedge.cli import app

                app(argv[1:], standalone_mode=False)
