"""A finished run whose exports are gone or damaged delivers them again, from its log."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zoedge.commands.export.whole import find_export_damage, set_aside
from zoedge.log.log import Log
from zoedge.run import folder as run_folder


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a finished run with its recipe, rows and model, which is the current folder."""
    shutil.copytree(finished, tmp_path / "user")
    monkeypatch.chdir(tmp_path / "user")
    return tmp_path / "user"


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 128
    path.write_bytes(raw)


def without_sums(adapter: Path, then: Callable[[Path], Any]) -> None:
    """The marker of an older version, and a damage."""
    marker = json.loads((adapter / "zoedge.json").read_text())
    del marker["sha256"]
    (adapter / "zoedge.json").write_text(json.dumps(marker))
    then(adapter)


WEIGHTS = "adapter_model.safetensors"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "gone": (shutil.rmtree, "adapter is gone: it is delivered again"),
    "no marker": (lambda a: (a / "zoedge.json").unlink(), "adapter has no zoedge.json (kept as "),
    "an empty folder": (lambda a: [p.unlink() for p in a.iterdir()], "adapter has no zoedge.json (kept as "),
    "no weights": (lambda a: (a / WEIGHTS).unlink(), f"{WEIGHTS} is gone, or not what was written"),
    "no configuration": (lambda a: (a / "adapter_config.json").unlink(), "adapter_config.json is gone"),
    "a bit": (lambda a: flip(a / WEIGHTS), f"{WEIGHTS} is gone, or not what was written"),
    "a cut": (lambda a: (a / WEIGHTS).write_bytes((a / WEIGHTS).read_bytes()[:-9]), "not what was written"),
    "empty weights": (lambda a: (a / WEIGHTS).write_bytes(b""), "not what was written"),
    "a bit of the tokenizer": (lambda a: flip(a / "tokenizer.json"), "tokenizer.json is gone, or not what was written"),
    "a marker that is none": (lambda a: (a / "zoedge.json").write_text("{}"), "reads (kept as "),
    "a bit of the marker": (
        lambda a: flip(a / "zoedge.json"),
        "zoedge.json: cannot be read (UnicodeDecodeError) (kept as ",
    ),
    "a bit, and an older marker": (lambda a: without_sums(a, lambda a: flip(a / WEIGHTS)), "not what was written"),
    "another step's": (
        lambda a: (a / "zoedge.json").write_text((a / "zoedge.json").read_text().replace('"steps": 4', '"steps": 2')),
        "is of another step or log",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_each_damage_is_found(place: Path, damage: str) -> None:
    adapter = place / "runs" / "tiny" / "adapter"
    with Log.open(place / "runs" / "tiny" / "run.zlog") as log:
        fingerprint = log.fingerprint
    assert find_export_damage(adapter, fingerprint, 4) == ""
    do, says = DAMAGE[damage]
    do(adapter)
    found, aside = find_export_damage(adapter, fingerprint, 4), set_aside(adapter)
    assert says.partition(" (kept as")[0].partition(": it is")[0] in found
    assert (aside is not None) == ("kept as" in says) == (not adapter.exists() and damage != "gone")
    assert aside is None or aside.name == "adapter.damaged-1"


@pytest.mark.parametrize(
    "damage,command", [("no marker", "finetune my.yaml"), ("a bit", "finetune my.yaml"), ("gone", "resume tiny")]
)
def test_a_damaged_export_is_delivered_again(zoedge: Any, place: Path, damage: str, command: str) -> None:
    run = place / "runs" / "tiny"
    whole, log = contents(run / "adapter"), (run / "run.zlog").read_bytes()
    do, says = DAMAGE[damage]
    do(run / "adapter")
    done = zoedge(*command.split(), "--plain")
    assert "this run is finished, but" in done.out and says in done.out, done
    assert done.code == 0 and contents(run / "adapter") == whole and (run / "run.zlog").read_bytes() == log
    done = zoedge(*command.split(), "--plain")
    assert "finished already" in done.out and "delivered again" not in done.out


def test_what_a_user_may_edit_is_left_alone(zoedge: Any, place: Path) -> None:
    """A card, a base's name in the configuration, and a file of the user's own."""
    adapter = place / "runs" / "tiny" / "adapter"
    (adapter / "README.md").write_text("mine")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "org/base"}))
    (adapter / "notes.txt").write_text("mine")
    before = contents(adapter)
    done = zoedge("finetune", "my.yaml", "--plain")
    assert done.code == 0 and "finished already" in done.out and contents(adapter) == before


def test_an_export_that_is_asked_for_later_is_delivered(zoedge: Any, place: Path) -> None:
    done = zoedge("finetune", "my.yaml", "output.export=[peft, merged]", "--plain")
    assert done.code == 0 and "merged is gone: it is delivered again" in done.out
    merged = place / "runs" / "tiny" / "merged"
    whole = contents(merged)
    flip(merged / "model.safetensors")
    done = zoedge("finetune", "my.yaml", "output.export=[peft, merged]", "--plain")
    assert done.code == 0 and "model.safetensors is gone, or not what was written" in done.out
    assert contents(merged) == whole
    lines = [line["event"] for line in run_folder.read_metrics(place / "runs" / "tiny")]
    assert lines.count("finished") == 3


def test_each_of_several_adapters_is_looked_at(zoedge: Any, place: Path) -> None:
    several = "space={name: several, of: {lora: {rank: 2, targets: [q_proj]}, prompt: {tokens: 2}}}"
    assert zoedge("finetune", "my.yaml", several, "name=two", "--quiet").code == 0
    adapter = place / "runs" / "two" / "adapter"
    whole = contents(adapter)
    for do, says in (
        (lambda: shutil.rmtree(adapter / "prompt"), "has 1 adapters of 2"),
        (lambda: flip(adapter / "prompt" / WEIGHTS), "not what was written"),
    ):
        do()
        done = zoedge("finetune", "my.yaml", several, "name=two", "--plain")
        assert done.code == 0 and says in done.out and contents(adapter) == whole
