"""Drift and the ordinary text's nats against transformers' own logits, in float64, before and after a space has moved."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.recipes import write_reviews

from zoedge.recipe.reading import read_recipe
from zoedge.run import setup
from zoedge.scoring import drift
from zoedge.scoring.drift import DriftMeter, encode_ordinary_text, read_ordinary_text, sample_unscored
from zoedge.scoring.models.loading import load_base
from zoedge.scoring.tasks._examples import Examples

WHOLE = ["model.quantization=none", "output.export=[]"]
SEVERAL_TOKENS = 'task={name: classify, options: {negative: " very dull", positive: " great fun"}}'
SPACES = {
    "lora, last block": ["space={name: lora, rank: 4, targets: all, layers: last 1}"],
    "lora, options of several tokens": ["space={name: lora, rank: 4, targets: all, layers: all}", SEVERAL_TOKENS],
    "full": ["space=full"],
    "prompt": ["space={name: prompt, tokens: 3}"],
}


def move(space: Any, size: float) -> None:
    """Move every trained element by noise of this size."""
    g = torch.Generator().manual_seed(3)
    for leaf in space.leaves():
        space.add(leaf, size * torch.randn(leaf.value.shape, generator=g), 1.0)


@torch.inference_mode()
def own_log_p(base: Any, ids: list[int]) -> torch.Tensor:
    """transformers' own log-probabilities after each token, [T, V] in float64, behind the virtual tokens that are held."""
    x = base.model.get_input_embeddings()(torch.tensor([ids]))
    ahead = 0
    if base.prompt is not None:
        x, ahead = torch.cat([base.prompt, x], 1), base.prompt.shape[1]
        logits = base.model(inputs_embeds=x).logits
    else:
        logits = base.model(input_ids=torch.tensor([ids])).logits
    return logits[0, ahead:].double().log_softmax(-1)


def reference_kl(base: Any, bench: Any, places: list[tuple[list[int], int]]) -> float:
    """KL(base || tuned) over some (sequence, position), the mean."""
    total = []
    for ids, row in places:
        before, after = own_log_p(base, ids)[row], own_log_p(bench.base, ids)[row]
        total.append(float((before.exp() * (before - after)).sum()))
    return math.fsum(total) / len(total)


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("space", SPACES)
def test_drift_is_the_kl_of_transformers_own_logits(
    space: str, family: str, families: dict[str, Path], recipe_file: Path, tmp_path: Path
) -> None:
    recipe = read_recipe(str(recipe_file), [f"model.source={families[family]}", *WHOLE, *SPACES[space]])
    bench, base = setup.Measuring.build(recipe), load_base(recipe.model)
    valid = bench.texts.valid
    assert valid is not None and valid.sequences_each == (2 if "several" in space else 1)
    for _ in bench.base.cache_trunk(valid, tmp_path):
        pass
    meter = DriftMeter(bench.base, tmp_path)
    meter.add(valid)
    if space != "prompt":  # virtual tokens that were never trained already move the answers
        with bench.space.visit([lambda leaf: None]):
            assert meter.measure(valid) == 0.0 and meter.measure_text() == meter.base_text
    firsts = range(0, len(valid.tokens), valid.sequences_each)
    places = [(i, row) for i in firsts for row in range(len(valid.tokens[i]) - 1) if row not in valid.rows[i]]
    assert 50 < len(places) <= drift.MAX_TOKENS
    move(bench.space, 0.05)
    with bench.space.visit([lambda leaf: None]):
        want = reference_kl(base, bench, [(valid.tokens[i], row) for i, row in places])
        assert want > 0.01 and meter.measure(valid) == pytest.approx(want, rel=1e-4)


def test_where_every_token_is_scored_drift_is_of_the_ordinary_text(
    llama: Path, recipe_file: Path, tmp_path: Path
) -> None:
    recipe = read_recipe(str(recipe_file), [f"model.source={llama}", *WHOLE, "space.targets=all", "task=lm"])
    bench, base = setup.Measuring.build(recipe), load_base(recipe.model)
    valid = bench.texts.valid
    assert valid is not None and sample_unscored(valid) == {}
    meter = DriftMeter(bench.base, tmp_path)
    meter.add(valid)
    move(bench.space, 0.05)
    places = [(ids, row) for ids in meter.text.tokens for row in range(len(ids))]
    assert len(places) > drift.MAX_TOKENS
    spaced = [places[j * len(places) // drift.MAX_TOKENS] for j in range(drift.MAX_TOKENS)]
    with bench.space.visit([lambda leaf: None]):
        assert meter.measure(valid) == pytest.approx(reference_kl(base, bench, spaced), rel=1e-4)


@pytest.mark.parametrize("family", ["llama", "opt", "opt_350m", "gemma"])
def test_the_texts_nats_are_transformers_loss(
    family: str, families: dict[str, Path], recipe_file: Path, tmp_path: Path
) -> None:
    recipe = read_recipe(str(recipe_file), [f"model.source={families[family]}", *WHOLE, "space.targets=all"])
    bench = setup.Measuring.build(recipe)
    meter = DriftMeter(bench.base, tmp_path)

    @torch.inference_mode()
    def own() -> float:
        total = count = 0.0
        for paragraph in read_ordinary_text():
            ids = torch.tensor([bench.base.tokenizer(paragraph).input_ids[: 96 // 2 + 1]])
            loss = bench.base.model(input_ids=ids, labels=ids).loss
            total, count = total + float(loss) * (ids.shape[1] - 1), count + ids.shape[1] - 1
        return total / count

    assert meter.base_text == pytest.approx(own(), abs=1e-5)
    move(bench.space, 0.05)
    with bench.space.visit([lambda leaf: None]):
        assert meter.measure_text() == pytest.approx(own(), abs=1e-5)
        assert abs(meter.measure_text() - meter.base_text) > 1e-3


def test_the_ordinary_text_is_sixty_sentences_without_its_source(
    tokenizer: Any, llama: Path, recipe_file: Path
) -> None:
    paragraphs = read_ordinary_text()
    assert len(paragraphs) == 12 and "#" not in "".join(paragraphs)
    assert sum(paragraph.count(". ") + 1 for paragraph in paragraphs) == 60
    base = load_base(read_recipe(str(recipe_file), WHOLE).model)
    alone = encode_ordinary_text(base)
    assert [len(ids) for ids in alone.tokens] == [48] * 12
    base.reserve_positions(10)
    assert encode_ordinary_text(base).tokens == alone.tokens


def test_the_sample_is_bounded_and_even(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 64 rows, 2,048 padded token rows, 256 tokens; one row at least; the tokens alone decide."""

    def examples(lengths: list[int]) -> Examples:
        made = Examples(1)
        for i, length in enumerate(lengths):
            made.add(list(range(length + 1)), [length], 0, f"row {i}")
        return made

    assert sample_unscored(examples([5, 2, 1])) == {0: [0, 1, 2, 3], 1: [0]}
    many = sample_unscored(examples([3] * 100))
    assert many == {i: [0, 1] for i in range(64)}
    wide = sample_unscored(examples([1000] * 100))
    assert set(wide) == {0, 1} and sum(map(len, wide.values())) == 256
    rows = [1000 * i + row for i, at in wide.items() for row in at]
    assert {b - a for a, b in pairwise(rows)} <= {7, 8, 9}
    assert set(sample_unscored(examples([5000, 5]))) == {0}
    assert sample_unscored(examples([5, 5000])) == {0: [0, 1, 2, 3]}


def test_what_a_full_disk_says(recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zoedge.errors import StorageError

    write_reviews(tmp_path / "rows.jsonl")
    bench = setup.Measuring.build(read_recipe(str(recipe_file), WHOLE))
    assert bench.texts.valid is not None
    meter = DriftMeter(bench.base, tmp_path)

    class Full:
        def write(self, raw: bytes) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(drift.tempfile, "TemporaryFile", lambda dir: Full())
    with pytest.raises(StorageError, match="cannot write what the base predicts: No space left on device"):
        meter.add(bench.texts.valid)
