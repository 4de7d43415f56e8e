"""What a user sees who types little: zoedge alone, --help, --version, an option that there is not, a file for a recipe."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Done
from typer.main import get_command

import zoedge as package
from zoedge.cli import app
from zoedge.cli.examples import EXAMPLES, FIRST_HOUR, list_commands
from zoedge.cli.hints import suggest_override
from zoedge.commands.recipes import GROUPS, group_recipes, list_recipes

Zoedge = Callable[..., Done]


def walk(command: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every command that does something, with its name."""
    for word, inner in getattr(command, "commands", {"": command}).items():
        if inner is command:
            yield name, command
        else:
            yield from walk(inner, f"{name} {word}".strip())


COMMANDS = dict(walk(get_command(app)))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_zoedge_alone_shows_the_first_hour_and_then_the_rest(zoedge: Zoedge) -> None:
    done = zoedge()
    first, rest = done.out.split("The rest:")
    assert done.code == 0 and done.err == ""
    listed = [name for name, _ in list_commands(app)]
    for name in FIRST_HOUR:
        assert f"\n  {EXAMPLES[name]}\n" in first, name
    assert all((f"\n  {name:14} " in rest) == (name not in FIRST_HOUR) for name in listed) and len(listed) > 20


def test_the_version(zoedge: Zoedge) -> None:
    done = zoedge("--version")
    assert (done.code, done.out) == (0, f"zoedge {package.__version__}\n")


def test_every_command_has_an_example_and_every_option_a_sentence() -> None:
    assert COMMANDS.keys() == EXAMPLES.keys()
    for name, command in COMMANDS.items():
        assert command.epilog == f"Example: {EXAMPLES[name]}", name
        for parameter in command.params:
            if parameter.name == "help":
                continue
            text = parameter.help or ""
            assert (text.endswith(".") and text[0].isupper()) or text.startswith("NAME.json"), (
                f"{name}: {parameter.name}: {text!r}"
            )


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_is_a_line_that_the_command_takes(name: str) -> None:
    program, *words = shlex.split(EXAMPLES[name])
    command = name.split()
    assert program == "zoedge" and words[: len(command)] == command
    context = COMMANDS[name].make_context(name, words[len(command) :])
    assert all(context.params[p.name] is not None for p in COMMANDS[name].params if p.required)


@pytest.mark.parametrize(
    ("typed", "override"),
    [
        ("finetune quickstart --steps 3", "train.steps=3"),
        ("finetune quickstart --learning_rate 1e-3", "rule.lr=1e-3"),
        ("finetune quickstart --learning-rate=1e-3", "rule.lr=1e-3"),
        ("validate quickstart --lora-r 4", "space.rank=4"),
        ("finetune quickstart --batch-size 8", "train.batch=8"),
        ("preview quickstart --max-seq-length 64", "data.max_length=64"),
        ("estimate quickstart --num-layers", "space.layers=VALUE"),
        ("finetune quickstart --train.steps 3", "train.steps=3"),
        ("finetune quickstart --lr --quiet", "rule.lr=VALUE"),
        ("sweep quickstart s.yaml --model-name-or-path x", "model.source=x"),
        ("finetune quickstart --nothing-like-it 3", ""),
        ("export runs/x --steps 3", ""),
    ],
)
def test_other_tools_flags_are_answered_with_key_value(typed: str, override: str, zoedge: Zoedge) -> None:
    done = zoedge(*typed.split())
    option = next(word for word in typed.split() if word.startswith("--")).partition("=")[0]
    assert done.code == 2
    if override:
        assert done.err == f"zoedge: No such option: {option}. Settings of a recipe are written key=value: {override}\n"
    else:
        assert "key=value" not in done.err and f"No such option: {option}" in done.err


def test_the_hint_needs_an_option_of_a_command_with_a_recipe() -> None:
    assert suggest_override("No such command 'x'.", ["zoedge", "finetune", "--steps", "1"]) == ""
    assert suggest_override("No such option: --steps", ["zoedge", "chat", "--steps", "1"]) == ""


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet", "book.txt"])
def test_rows_are_no_recipe(name: str, tmp_path: Path, zoedge: Zoedge) -> None:
    (tmp_path / name).write_text("x\n")
    for command in ("finetune", "validate", "preview", "estimate"):
        done = zoedge(command, name)
        sentence = f"zoedge: {name}: these are rows, and a recipe is a YAML file that names rows. "
        assert (done.code, done.err) == (2, f"{sentence}`zoedge init {name}` writes one.\n")
    (tmp_path / name).unlink()
    assert f"No recipe '{name}': no such file" in zoedge("finetune", name).err


def test_another_tools_configuration_is_answered_with_import_config(tmp_path: Path, zoedge: Zoedge) -> None:
    (tmp_path / "c.yml").write_text("base_model: a/b\nadapter: lora\ndatasets: [{path: x/y}]\n")
    done = zoedge("finetune", "c.yml")
    sentence = "zoedge: c.yml: this is another tool's configuration, and no recipe. "
    assert (done.code, done.err) == (2, f"{sentence}`zoedge import-config c.yml -o recipe.yaml` makes one of it.\n")
    (tmp_path / "c.yml").write_text("version: 1\nmodel: {source: x}\ndata: {train: y}\nlora_r: 3\nbase_model: x\n")
    assert "c.yml:4:1: lora_r: unknown key - zoedge calls this 'space.rank'" in zoedge("finetune", "c.yml").err


def test_an_unknown_recipe_gets_the_nearest_three(zoedge: Zoedge) -> None:
    done = zoedge("finetune", "frist")
    assert done.err.count("\n") == 1 and "Did you mean first-film, " in done.err and len(done.err) < 200
    far = zoedge("finetune", "0000")
    assert far.err == "zoedge: No recipe '0000': no such file, and not a shipped one. `zoedge recipes ls` lists them.\n"


def test_recipes_are_listed_in_groups_and_searched(zoedge: Zoedge) -> None:
    out = zoedge("recipes", "ls").out
    assert [line[:-1] for line in out.splitlines() if line[0] != " " and line.endswith(":")] == list(GROUPS)
    assert out.splitlines()[1].startswith("  quickstart           packaged, 2 min")
    assert "  mezo-sst2            opt-1.3b, own rows" in out and "  aligned              packaged " in out
    recipes = list_recipes()
    assert {r.name: r.group for r in recipes if r.name in ("fzoo", "scales", "roberta-rte-mezo", "first-topics")} == {
        "fzoo": "methods",
        "scales": "spaces",
        "roberta-rte-mezo": "data sets of the papers",
        "first-topics": "start here",
    }
    assert [r.name for group in group_recipes(["hizoo"]).values() for r in group] == ["hizoo"]
    assert all("trec" in f"{r.name} {r.text}".lower() for group in group_recipes(["TREC"]).values() for r in group)
    done = zoedge("recipes", "ls", "no", "such", "word")
    assert (done.code, done.err) == (
        2,
        "zoedge: No shipped recipe has 'no such word'. `zoedge recipes ls` lists all of them.\n",
    )


def test_an_empty_folder_has_no_runs(tmp_path: Path, zoedge: Zoedge) -> None:
    done = zoedge("runs", "ls")
    assert (done.code, done.out) == (0, "There are no runs in runs. `zoedge finetune RECIPE` makes one.\n")
    assert zoedge("runs", "ls", "--json").out == "" and not list(tmp_path.iterdir())


def test_a_dry_run_says_what_it_does_not_check(zoedge: Zoedge) -> None:
    done = zoedge("finetune", "quickstart", "--dry-run")
    assert done.err == "Rows, reward and model were not read: `zoedge validate quickstart` checks them.\n"
    assert done.code == 0 and json.dumps("quickstart")[1:-1] in done.out
