"""A trained model is used where its training rows are not: a copied run folder, and the base, are enough."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Done

from zoedge.scoring.models import loading

MORE = {
    "lora": [],
    "prompt": ["space={name: prompt, tokens: 2}"],
    "prefix": ["space={name: prefix, tokens: 2}"],
    "scales": ["space=scales", "output.export=[]"],
    "several": ["space={name: several, of: {lora: {rank: 2}, prompt: {tokens: 2}}}"],
    "full": ["space=full", "model.quantization=none", "rule.lr=1e-4", "output.export=[]"],
    "best": ["eval.select=best", "eval.every=2"],
}  # fmt: skip
REWARD = "def reward(rows, answers):\n    return [float(len(answer)) for answer in answers]\n"


@pytest.fixture
def copied(
    recipe_file: Path, reviews: Path, tmp_path: Path, zoedge: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """A function that trains with some overrides, and returns a copy of the run's folder in a place without the rows."""

    def copy(*overrides: str) -> Path:
        rows = tmp_path / "rows.jsonl"
        shutil.copy(reviews, rows)
        data = f"data={{train: '{rows}', valid: {{split: 10}}, test: {{split: 20}}, max_length: 64}}"
        done = zoedge("finetune", recipe_file, data, "train.steps=4", *overrides, "--plain")
        assert done.code == 0, done.err
        away = tmp_path / "away"
        away.mkdir()
        shutil.move(recipe_file.parent / "runs" / "tiny", away / "tiny")
        rows.unlink()
        monkeypatch.chdir(away)
        return away / "tiny"

    return copy


@pytest.mark.parametrize("which", MORE)
def test_every_use_of_a_trained_model_needs_no_rows(
    which: str, copied: Callable[..., Path], zoedge: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(*MORE[which])
    uses: list[list[Any]] = [
        ["generate", run, "-p", "the film is"],
        ["generate", run, "-p", "the film is", "--free", "--tokens", 2],
        ["replay", run, "-o", "replayed"],
        ["verify", run, "--replay"],
        ["pack", run, "-o", "film.zoe"],
        ["apply", "film.zoe", "-o", "applied"],
        ["chat", run, "--tokens", 2],
    ]
    kinds = {"lora": "peft merged gguf-lora", "best": "peft", "scales": "merged", "full": "merged"}
    uses += [["export", run, "--to", kind, "-o", f"out-{kind}"] for kind in kinds.get(which, "peft").split()]
    if which == "full":  # nothing smaller than the model itself would be shared
        uses = [use for use in uses if use[0] not in ("pack", "apply")]
    for use in uses:
        monkeypatch.setattr(sys, "stdin", io.StringIO("the film is\n"))
        done = zoedge(*use)
        assert done.code == 0, (use, done.err)
        assert use[0] not in ("generate", "chat") or done.out.strip(), use
    done = zoedge("eval", run)
    assert done.code == 3 and "data.train: no file" in done.err, "what measures needs rows, and says so"


def test_a_reward_of_ones_own_is_not_needed_to_use_what_it_trained(
    copied: Callable[..., Path], zoedge: Callable[..., Done], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_reward.py").write_text(REWARD)
    monkeypatch.syspath_prepend(str(tmp_path))
    run = copied("task.objective=my_reward:reward")
    (tmp_path / "my_reward.py").unlink()
    monkeypatch.delitem(sys.modules, "my_reward")
    for use in (["generate", run, "-p", "the film is"], ["export", run, "--to", "peft", "-o", "out"]):
        done = zoedge(*use)
        assert done.code == 0, done.err


def test_an_export_loads_the_base_once_or_not_at_all(
    copied: Callable[..., Path], zoedge: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, loads, load_base = copied(), [], loading.load_base

    def count(spec: Any) -> Any:
        loads.append(spec)
        return load_base(spec)

    monkeypatch.setattr(loading, "load_base", count)
    for kind, times in (("peft", 0), ("gguf-lora", 0), ("merged", 1)):
        loads.clear()
        done = zoedge("export", run, "--to", kind, "-o", f"out-{kind}")
        assert done.code == 0 and len(loads) == times, (kind, done.err, len(loads))


def test_an_export_of_another_base_is_refused(
    copied: Callable[..., Path], zoedge: Callable[..., Done], llama: Path
) -> None:
    run = copied()
    config = llama / "config.json"
    text = config.read_text()
    try:
        config.write_text(text + "\n")
        for kind in ("peft", "gguf-lora", "merged"):
            done = zoedge("export", run, "--to", kind, "-o", f"out-{kind}")
            assert done.code == 4 and "does not belong to what is here now: the base model" in done.err, done.err
            assert not Path(f"out-{kind}").exists()
    finally:
        config.write_text(text)


def test_a_finished_run_is_not_shown_for_other_rows(
    recipe_file: Path, zoedge: Callable[..., Done], reviews: Path, tmp_path: Path
) -> None:
    """The rows decide the numbers: a run of others is refused, and one of the same rows elsewhere is what it was."""
    assert zoedge("finetune", recipe_file, "train.steps=4", "--quiet").code == 0
    for change in ("data.limit=30", "data.test.split=5"):
        done = zoedge("finetune", recipe_file, "train.steps=4", change, "--plain")
        assert done.code == 4 and "data.train content" in done.err, done
    elsewhere = shutil.copy(reviews, tmp_path / "elsewhere.jsonl")
    done = zoedge("finetune", recipe_file, "train.steps=4", f"data.train={elsewhere}", "--plain")
    assert done.code == 0 and "after 4 steps" in done.out, done.err
