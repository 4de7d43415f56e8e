"""A run that is used from another folder than the one it began in, a longer run, and rows that have changed since."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.commands import Done


def test_a_run_is_used_from_another_folder(
    finished: Path, tmp_path: Path, monkeypatch: Any, zoedge: Callable[..., Done]
) -> None:
    from zoedge.scoring.sources import places

    places._places.set(())
    shutil.copytree(finished, tmp_path / "moved")
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    run = "../moved/runs/tiny"
    done = zoedge("finetune", "../moved/my.yaml", "--plain")
    assert done.code == 3 and not Path("runs/tiny").exists(), "nothing is left of a run that could not begin"
    assert f"Relative paths begin in the current folder, {tmp_path / 'else'}." in done.err
    export = ("export", run, "--to", "peft", "-o", "out")
    for command in (("eval", run), ("generate", run, "-p", "the film"), export, ("resume", run, "--plain")):
        done = zoedge(*command)
        assert done.code == 0, (command, done)
    assert Path("out/adapter_config.json").is_file()
    places._places.set(())


def test_a_longer_run_and_rows_that_changed(
    finished: Path, tmp_path: Path, monkeypatch: Any, zoedge: Callable[..., Done]
) -> None:
    shutil.copytree(finished, tmp_path / "own")
    monkeypatch.chdir(tmp_path / "own")
    done = zoedge("finetune", "my.yaml", "train.steps=8")
    assert done.code == 4 and done.err.rstrip().endswith(
        "To go on from its end: zoedge finetune RECIPE --from runs/tiny@4 name=longer train.steps=8"
    )
    assert zoedge("finetune", "my.yaml", "--from", "runs/tiny@4", "name=longer", "train.steps=8").code == 0
    assert "To go on" not in zoedge("finetune", "my.yaml", "train.steps=2").err
    assert zoedge("finetune", "my.yaml").code == 0
    rows = Path("rows.jsonl").read_text().splitlines(keepends=True)
    Path("rows.jsonl").write_text("".join(rows[20:]))
    done = zoedge("finetune", "my.yaml")
    assert done.code == 4 and "what was trained on changed: data.train content (sha256" in done.err
