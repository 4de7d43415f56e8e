"""The shell's tab key: names and keys, through the variables that shells set, without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from zoedge.cli import completing
from zoedge.core.parts import PART_FOLDERS, list_words, load_part
from zoedge.recipe import check, schema, sections

ROOT = Path(check.__file__).parents[2]
CODE = """
import json, sys
from zoedge.cli import main
sys.argv = ["zoedge"]
try:
    main()
except SystemExit as e:
    code = e.code
print(json.dumps([code, sorted(name for name in ("torch", "numpy", "transformers") if name in sys.modules)]))
"""


def typed(line: str, folder: Path, shell: str = "bash") -> list[str]:
    """What a shell is offered after a line that is not finished."""
    words = line.split(" ")
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "_ZOEDGE_COMPLETE": f"complete_{shell}", "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1), "_TYPER_COMPLETE_ARGS": line,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        env=environment,
        check=False,
    )
    *offered, last = done.stdout.splitlines()
    code, heavy = json.loads(last)
    assert not heavy and code in (0, None), done.stderr
    return [one for one in offered if one]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("runs/first", "runs/second", "mine"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("runs/first/run.zlog", "runs/second/run.zlog", "quiet.yaml", "notes.txt", "mine/deep.yml"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("zoedge fine", ["finetune"]),
        ("zoedge finetune qui", ["quickstart", "quiet.yaml"]),
        ("zoedge validate mi", ["mine/"]),
        ("zoedge validate mine/", ["mine/deep.yml"]),
        ("zoedge recipes show ada", ["adam", "adamu"]),
        ("zoedge resume ", ["first", "second"]),
        ("zoedge log show se", ["second"]),
        ("zoedge finetune quickstart train.st", ["train.steps="]),
        ("zoedge finetune quickstart rule.b", ["rule.b1=", "rule.b2=", "rule.beta1=", "rule.beta2="]),
        ("zoedge finetune quickstart noise=s", ["noise=sparse", "noise=sphere"]),
        ("zoedge finetune quickstart rule.lr=", []),
        ("zoedge estimate qui", ["quickstart", "quiet.yaml"]),
        ("zoedge estimate quickstart data.max", ["data.max_length="]),
        ("zoedge estimate quickstart --budget 8GB rule=mo", ["rule=momentum"]),
        ("zoedge preview ada", ["adam", "adamu"]),
        ("zoedge preview quickstart data.lim", ["data.limit="]),
        ("zoedge sweep ada", ["adam", "adamu"]),
        ("zoedge sweep quickstart q", ["quiet.yaml"]),
        ("zoedge sweep quickstart mine/deep.yml task=ch", ["task=chat", "task=choose"]),
        ("zoedge pack fi", ["first"]),
        ("zoedge runs rm first se", ["second"]),
        ("zoedge report se", ["second"]),
        ("zoedge eval fi", ["first"]),
        ("zoedge export first --to g", ["gguf-lora"]),
        ("zoedge export first --dtype f", ["fp16", "fp32"]),
        ("zoedge replay first --at b", ["best"]),
        ("zoedge finetune quickstart --from se", ["second@best", "second@last"]),
        ("zoedge schema --field rule.lr", ["rule.lr"]),
        ("zoedge init no", ["notes.txt"]),
        ("zoedge lab run flat_s", ["flat_svm"]),
        ("zoedge import-config --from l", ["llama-factory", "litgpt"]),
    ],
)
def test_what_is_offered(line: str, wanted: list[str], folder: Path) -> None:
    assert typed(line, folder) == wanted


def test_another_shell(folder: Path) -> None:
    assert any('"first"' in one for one in typed("zoedge resume fi", folder, "zsh"))


def test_every_key_is_one_and_every_one_is_there() -> None:
    known = {"name", "seed", *PART_FOLDERS} | {f"{k}.{f}" for k, s in sections.SECTIONS.items() for f in s.model_fields}
    known |= {
        f"{kind}.{f.name}"
        for kind, folder in PART_FOLDERS.items()
        for w in list_words(folder)
        for f in fields(load_part(kind, w))
    }
    assert len(known) > 80 and set(completing.list_keys()) == known


def test_the_file_of_keys_is_up_to_date() -> None:
    assert completing.KEYS_FILE.samefile(schema.KEYS_FILE)
    assert schema.KEYS_FILE.read_text(encoding="utf-8") == schema.format_keys(), "make docs"


def test_a_commands_word_is_a_file_in_commands() -> None:
    """README says so. A group's word, such as `runs`, counts as a command's."""
    import typer

    import zoedge
    from zoedge.cli import app

    words = {word.replace("-", "_") for word in typer.main.get_group(app).commands}  # type: ignore[attr-defined]
    assert len(words) > 20
    folder = Path(zoedge.__file__).parent / "commands"
    missing = {word for word in words if not (folder / f"{word}.py").is_file() and not (folder / word).is_dir()}
    assert not missing
