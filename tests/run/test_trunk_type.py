"""`model.trunk_dtype`: the lower blocks' products in bf16, where this CPU is faster at it; a number of the run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import replays
from helpers.scores import far, load, random_sentences

import zoedge
from zoedge.errors import UsageError
from zoedge.log.log import Log
from zoedge.recipe.reading import read_recipe
from zoedge.recipe.recipe import TRUNK_KEY
from zoedge.run import auto
from zoedge.run.identity import recipe_digest
from zoedge.scoring.models import speed

MORE = ["train.steps=6", "eval.every=3", "cache.limit=0GB"]


@pytest.mark.parametrize("scheme", ["nf4", "int8", "none"])
@pytest.mark.parametrize("family", ["llama", "opt", "pythia"])
def test_only_the_products_below_change(families: dict[str, Path], family: str, scheme: str) -> None:
    plain, lowered = load(families[family], scheme), load(families[family], scheme)
    batch = random_sentences(6).collate(range(6))
    for base in (plain, lowered):
        base.set_cut(1)
    lowered.lower_trunk("bf16")
    lengths = torch.tensor([len(ids) for ids in batch.examples.tokens])
    states = [base.trunk(batch.ids, lengths) for base in (plain, lowered)]
    assert states[1].dtype == torch.float32 and 1e-4 < far(*states) / states[0].abs().max().item() < 0.05
    h = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(1))
    for block, other in zip(plain.blocks[1:], lowered.blocks[1:]):
        context = plain.context(h, torch.tensor([9, 9]), 1, None)
        assert torch.equal(block(h, **context), other(h, **context)), "trained blocks stay as they are"
    for word in (None, "fp32"):
        plain.lower_trunk(word)
    assert plain.trunk_dtype is None and torch.equal(plain.trunk(batch.ids, lengths), states[0])


def finish(recipe: Path, folder: Path, *more: str) -> str:
    zoedge.finetune(str(recipe), *MORE, *more, run_dir=folder)
    return hashlib.sha256((folder / "run.zlog").read_bytes()).hexdigest()


def logged(folder: Path) -> Any:
    with Log.open(folder / "run.zlog") as log:
        return log.header.about["recipe"]["model"].get("trunk_dtype")


@pytest.mark.parametrize("ratio,word", [(2.0, "bf16"), (1.1, "fp32")])
def test_auto_is_a_number_of_the_run_that_a_resume_does_not_ask_again(
    recipe_file: Path, tmp_path: Path, ratio: float, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(speed, "compare_types", lambda width: asked.append(width) or ratio)
    one = tmp_path / "one"
    whole = finish(recipe_file, one, "model.trunk_dtype=auto")
    assert asked == [64] and logged(one) == word and replays(one)
    assert finish(recipe_file, tmp_path / "two", f"model.trunk_dtype={word}") == whole and asked == [64]
    plain = finish(recipe_file, tmp_path / "plain")
    assert logged(tmp_path / "plain") is None and plain != whole
    with Log.open(one / "run.zlog") as log, Log.open(tmp_path / "plain" / "run.zlog") as other:
        assert (log[0].losses == other[0].losses) is (word == "fp32")
        slot = log.header.slot_size
    raw = (one / "run.zlog").read_bytes()
    (one / "run.zlog").write_bytes(raw[: -4 * slot])
    monkeypatch.setattr(speed, "compare_types", lambda width: pytest.fail("timed again"))
    assert finish(recipe_file, one, "model.trunk_dtype=auto") == whole, "a resume"


def test_what_is_not_written_leaves_old_digests_alone(recipe_file: Path) -> None:
    plain = read_recipe(str(recipe_file))
    chosen = read_recipe(str(recipe_file), ["model.trunk_dtype=bf16"])
    left_open = read_recipe(str(recipe_file), ["model.trunk_dtype=auto"])
    assert "trunk_dtype" not in plain.resolved()["model"] and recipe_digest(plain) != recipe_digest(chosen)
    assert TRUNK_KEY in left_open.auto and not plain.auto and not chosen.auto
    assert left_open.resolved()["model"]["trunk_dtype"] == "auto"
    with pytest.raises(UsageError, match=r"model\.trunk_dtype"):
        read_recipe(str(recipe_file), ["model.trunk_dtype=fp16"])
    assert auto.LEAST_GAIN > 1


def test_the_timing_is_short_and_a_ratio() -> None:
    import time

    began = time.thread_time()
    assert 0.02 < speed.compare_types(64) < 50
    assert time.thread_time() - began < 0.3
