"""`zoedge schema` and `zoedge validate`: every shipped recipe is right by both, and what is wrong is wrong by both."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Done

from zoedge.core.parts import PART_FOLDERS, list_words, load_part
from zoedge.errors import UsageError
from zoedge.recipe import check, reading, schema, sections, strict_yaml


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return schema.recipe_schema()


KINDS: dict[str, Callable[[Any], bool]] = {
    "string": lambda x: isinstance(x, str),
    "integer": lambda x: isinstance(x, int) and not isinstance(x, bool),
    "number": lambda x: isinstance(x, (int, float)) and not isinstance(x, bool),
    "boolean": lambda x: isinstance(x, bool),
    "array": lambda x: isinstance(x, list),
    "object": lambda x: isinstance(x, dict),
    "null": lambda x: x is None,
}
KNOWN = {
    "$schema", "title", "description", "default", "type", "const", "enum", "anyOf", "properties", "required",
    "additionalProperties", "items", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "pattern",
}  # fmt: skip


def faults(value: Any, by: dict[str, Any], path: str = "") -> Iterator[str]:
    """What a draft 2020-12 validator would say, for the words that the schema uses."""
    assert by.keys() <= KNOWN, by.keys() - KNOWN
    if "anyOf" in by and all(any(True for _ in faults(value, one, path)) for one in by["anyOf"]):
        yield f"{path}: none of the kinds"
    if "type" in by and not KINDS[by["type"]](value):
        yield f"{path}: not {by['type']}"
        return
    if "const" in by and value != by["const"]:
        yield f"{path}: not {by['const']}"
    if "enum" in by and value not in by["enum"]:
        yield f"{path}: not of the enum"
    if KINDS["number"](value):
        for word, right in {
            "minimum": lambda a, b: a >= b, "maximum": lambda a, b: a <= b, "exclusiveMinimum": lambda a, b: a > b,
            "exclusiveMaximum": lambda a, b: a < b,
        }.items():  # fmt: skip
            if word in by and not right(value, by[word]):
                yield f"{path}: {word}"
    if isinstance(value, str) and "pattern" in by and not re.search(by["pattern"], value):
        yield f"{path}: pattern"
    if isinstance(value, list) and "items" in by:
        for item in value:
            yield from faults(item, by["items"], path)
    if isinstance(value, dict):
        for key in by.get("required", []):
            if key not in value:
                yield f"{path}.{key}: missing"
        for key, inner in value.items():
            if key in by.get("properties", {}):
                yield from faults(inner, by["properties"][key], f"{path}.{key}")
            elif by.get("additionalProperties") is False:
                yield f"{path}.{key}: unknown"
            elif isinstance(more := by.get("additionalProperties"), dict):
                yield from faults(inner, more, f"{path}.{key}")


def judged(value: Any, document: dict[str, Any]) -> list[str]:
    """By the check above, and by the jsonschema package where it is installed."""
    found = list(faults(value, document))
    try:
        import jsonschema
    except ImportError:
        return found
    jsonschema.Draft202012Validator.check_schema(document)
    assert bool(found) == bool(list(jsonschema.Draft202012Validator(document).iter_errors(value)))
    return found


# -- the schema


@pytest.mark.parametrize("path", reading.list_shipped(), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_right(path: Path, document: dict[str, Any]) -> None:
    table, _ = strict_yaml.read_yaml(path.read_text(), str(path))
    assert judged(table, document) == []
    resolved = reading.read_recipe(str(path)).resolved()
    assert judged(resolved, document) == [], "and with every default written out"


RIGHT = {"version": 1, "model": {"source": "x"}, "data": {"train": "a.jsonl"}}
WRONG: dict[str, dict[str, Any]] = {
    "no data": {"version": 1, "model": {"source": "x"}},
    "another version": RIGHT | {"version": 2},
    "a typo": RIGHT | {"rules": "sgd"},
    "a typo in a section": RIGHT | {"train": {"step": 5}},
    "an unknown word": RIGHT | {"rule": "sgdd"},
    "an option of another part": RIGHT | {"rule": {"name": "sgd", "beta1": 0.9}},
    "a negative rate": RIGHT | {"rule": {"lr": -1}},
    "a word for a number": RIGHT | {"train": {"steps": "many"}},
    "an odd quantisation": RIGHT | {"model": {"source": "x", "quantization": "int3"}},
    "a share over 1": RIGHT | {"data": {"train": "a", "valid": {"split": 1.5}}},
    "a split of nothing": RIGHT | {"data": {"train": "a", "valid": {"split": 0}}},
    "a name with a path": RIGHT | {"name": "../x"},
    "a seed below 0": RIGHT | {"seed": -1},
    "an unknown format": RIGHT | {"data": {"train": "a", "format": "vicuna"}},
    "a list for a text": RIGHT | {"data": {"train": ["a", "b"]}},
    "a space within, misspelt": RIGHT | {"space": {"name": "several", "of": {"lorra": {}}}},
    "an option within, misspelt": RIGHT | {"space": {"name": "several", "of": {"lora": {"ranks": 3}}}},
}


@pytest.mark.parametrize("name", WRONG)
def test_what_the_checker_refuses_the_schema_refuses(name: str, document: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        check.check(WRONG[name], {}, "it")
    assert judged(WRONG[name], document)


@pytest.mark.parametrize(
    "more",
    [
        {}, {"rule": "adam"}, {"rule": {"name": "adam", "beta1": 0.8}}, {"rule": {"lr": 1e-4}}, {"task": None},
        {"space": {"name": "several", "of": {"lora": {"rank": 2}, "prompt": None}}}, {"train": {"watchdog": {}}},
        {"data": {"train": "a", "valid": {"split": 0.1}, "test": {"split": 5}}}, {"eval": {"curvature": {"every": 5}}},
    ],
)  # fmt: skip
def test_what_the_checker_takes_the_schema_takes(more: dict[str, Any], document: dict[str, Any]) -> None:
    assert check.check(RIGHT | more, {}, "it") and judged(RIGHT | more, document) == []


def test_every_field_has_a_description_and_its_default(document: dict[str, Any]) -> None:
    known = schema.list_fields()
    for path, owners in known.items():
        for word, value in owners:
            assert value["description"].endswith("."), f"{path} {word}: write Doc(...), a sentence, in its annotation"
    for key, section in sections.SECTIONS.items():
        for name, field in section.model_fields.items():
            (_, value) = known[f"{key}.{name}"][0]
            assert field.is_required() or value["default"] == json.loads(json.dumps(field.default)), f"{key}.{name}"
    for kind, folder in PART_FOLDERS.items():
        for word in list_words(folder):
            there = {
                path.partition(".")[2]
                for path, found in known.items()
                if word in [w for w, _ in found] and path.startswith(kind)
            }
            assert {f.name for f in fields(load_part(kind, word))} <= there
    assert document["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "$ref" not in json.dumps(document)


# -- one field


def test_a_field_in_words() -> None:
    assert schema.explain_field("rule.lr") == "rule.lr: a number, over 0 or auto; default: 'auto'\n  The step size."
    assert schema.explain_field("rule.beta1").startswith("rule.beta1 (rule: adam): a number, ")
    assert schema.explain_field("data.train").startswith(
        "data.train: a text; required\n  The training rows: a .jsonl, .json, .csv"
    )
    assert schema.explain_field("eval.select").startswith(
        "eval.select: last | best; default: 'last'\n  The step that is delivered"
    )
    assert (
        schema.explain_field("train.watchdog.clip").splitlines()[0]
        == "train.watchdog.clip: a number, at least 0; default: 10.0"
    )
    assert schema.explain_field("seed").startswith("seed: a whole number, at least 0 and at most 2**64; default: 0\n")
    assert schema.explain_field("task.tokens").startswith(
        "task.tokens (task: generate): a whole number, at least 1; default: 50"
    )
    assert schema.explain_field("log").splitlines()[-1] == "  keys: log.sync_every, log.hash_every, log.trackers"
    assert "full | lora | prefix" in schema.explain_field("space")


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("rule.lrr", r"^--field: no 'rule\.lrr' in a recipe - did you mean 'rule\.lr'\?"),
        ("max_length", r"did you mean 'data\.max_length'\?"),
        ("log.zzzzzzz", r"There is: log\.sync_every, log\.hash_every"),
        ("\x1b[31m", r"no '\\x1b\[31m'"),
    ],
)
def test_no_such_field(path: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        schema.explain_field(path)


# -- as a user types it


def test_the_commands(tmp_path: Path, zoedge: Callable[..., Done]) -> None:
    done = zoedge("schema", "-o", tmp_path / "s.json")
    assert done.code == 0 and "# yaml-language-server: $schema=" in done.out
    assert json.loads((tmp_path / "s.json").read_text())["required"] == ["version", "model", "data"]
    assert zoedge("schema", "--field", "rule.lr").out.startswith("rule.lr: a number")
    assert zoedge("schema", "--field", "rule.lrr").code == 2
    assert "cannot write: No such file" in zoedge("schema", "-o", tmp_path / "no" / "s.json").err


@pytest.fixture
def folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import shutil

    shutil.copytree(finished, tmp_path / "user", ignore=shutil.ignore_patterns("runs"))
    monkeypatch.chdir(tmp_path / "user")
    return tmp_path / "user"


def test_a_recipe_that_is_right(folder: Path, zoedge: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    from zoedge.scoring.models import loading

    def never(*args: Any, **options: Any) -> Any:
        raise AssertionError("validate loads no weights")

    monkeypatch.setattr(loading, "from_pretrained", never)
    monkeypatch.setattr(loading, "quantised_folder", never)
    done = zoedge("validate", "my.yaml", "model.quantization=nf4")
    assert done.code == 0, done.err
    assert done.out == "ok: llama, 3 layers, nf4; 70 train rows, 10 valid rows; lora, 4 steps of 4; then peft\n"
    assert not (folder / "runs").exists()


def test_what_is_not_here_yet_is_not_fetched(
    folder: Path, zoedge: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOEDGE_CACHE", str(folder / "cache"))
    done = zoedge("validate", "quickstart")
    assert done.code == 0, done.err
    assert done.out.startswith(
        "ok: smollm2-135m-instruct (not fetched yet); train film-reviews (not fetched yet); lora, 250"
    )
    assert "not fetched yet" in zoedge("validate", "my.yaml", "model.source=org/model").out


def test_all_that_is_wrong_is_said_at_once(folder: Path, zoedge: Callable[..., Done]) -> None:
    (folder / "bad.jsonl").write_text('{"text": "a", "label": "positive"}\n{\n')
    done = zoedge("validate", "my.yaml", "space.targets=[q_prj]", "data.train=bad.jsonl", "data.valid=none.jsonl")
    assert done.code == 3 and [line.removeprefix("zoedge: ").partition(": ")[0] for line in done.err.splitlines()] == [
        "space.targets", "bad.jsonl:2", "data.valid",
    ]  # fmt: skip
    assert "did you mean 'q_proj'" in done.err


@pytest.mark.parametrize(
    ("change", "code", "sentence"),
    [
        (["rule.lrr=1"], 2, r"rule\.lrr: unknown key - did you mean 'lr'"),
        (["task=mlm"], 3, "task: mlm fills a mask, and this base reads what comes next"),
        (["model.source=nix"], 3, "model.source: no folder 'nix'"),
        (["space={name: lora, layers: last 9}"], 3, r"space\.layers: 'last 9' is not all, 'last 1' \.\. 'last 3'"),
        (["space={name: prompt, tokens: 500}"], 3, r"space\.tokens: 500 leave no room for text in a context of"),
        (["data.max_length=4"], 3, "are longer than 4 tokens"),
        (["task.options={a: x, b: y}"], 3, "no row's label is one of task.options"),
        (["output.export=[merged]", "space=prompt"], 2, "nothing to merge"),
        (["task=chat"], 3, r"cannot tell the format\. Keys: text, label"),
        (["data.train=model"], 3, r"data\.train: the folder model has no train\.jsonl"),
        (["model.device=cuda"], 3, r"model\.device: cuda, but"),
    ],
)
def test_each_kind_of_mistake(
    change: list[str],
    code: int,
    sentence: str,
    folder: Path,
    zoedge: Callable[..., Done],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = zoedge("validate", "my.yaml", *change)
    assert done.code == code and re.search(sentence, done.err), done.err
