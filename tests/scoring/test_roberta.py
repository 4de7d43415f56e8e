"""RoBERTa fills masks: its forward equals transformers', its prompts are LM-BFF's, and its runs replay and are exported.

The last part measures what docs/roberta-analysis.md says of runs that stay at 50 %.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import models
from helpers.paths import ROOT
from helpers.scores import CLOSE, far, load, plain_logits, random_examples
from safetensors.torch import load_file, save_file

from zoedge.commands.export import check
from zoedge.commands.export import merged as export_merged
from zoedge.commands.export import peft as export_peft
from zoedge.core import digests, engine
from zoedge.core.types import Key
from zoedge.errors import DataError
from zoedge.log.log import Log
from zoedge.methods.noise.normal import Normal
from zoedge.recipe.reading import read_recipe
from zoedge.recipe.sections import Model
from zoedge.run import folder as run_folder
from zoedge.run import replay, setup
from zoedge.scoring.rows.row import Row
from zoedge.scoring.tasks._examples import Batch, Examples
from zoedge.scoring.tasks.mlm import Mlm

LENGTHS = [41, 7, 23, 60, 5, 15]


def reference(folder: Path, quantization: str) -> Any:
    return models.reference(folder, Model(source="", quantization=quantization), "AutoModelForMaskedLM")


# -- the forward


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_scored_rows_equal_the_plain_forward(roberta: Path, quantization: str, tmp_path: Path) -> None:
    """With and without the trunk, at every cut; the head's bias counts."""
    base, batch = load(roberta, quantization), random_examples(LENGTHS, vocabulary=350).collate(range(len(LENGTHS)))
    want = plain_logits(reference(roberta, quantization), batch)
    everything = torch.arange(want.shape[-1])
    assert want.abs().max() > 1 and base.facts.head(base.model).bias.abs().max() > 0.1
    for cut in (0, 1):
        base.find_linears(list(range(cut, 2)), "all")
        assert base.cut == cut
        assert far(base.logits(base.hidden_states(batch, 1), everything), want) < CLOSE
        assert sum(base.cache_trunk(batch.examples, tmp_path)) == cut * len(LENGTHS)
        twice = base.logits(base.hidden_states(batch, 2), everything)
        assert far(twice, want.repeat(2, 1, 1)) < CLOSE
    targets = batch.rows * 5
    log_p = torch.log_softmax(want.double(), -1).gather(-1, targets[..., None])[..., 0]
    assert far(base.log_likelihood(base.hidden_states(batch, 1), targets).double(), log_p) < CLOSE


def test_padding_is_nobodys_business(roberta: Path, tmp_path: Path) -> None:
    """Attention looks both ways: what stands in the padding, and how much of it, must not matter."""
    base, examples = load(roberta, "none"), random_examples(LENGTHS, vocabulary=350)
    base.find_linears("last 1", "all")
    for _ in ("computed", "kept"):
        together = examples.collate(range(len(LENGTHS)))
        first = base.hidden_states(together, 1)
        for i in range(len(LENGTHS)):
            assert far(base.hidden_states(examples.collate([i]), 1)[0], first[i]) < CLOSE
        for s, ids in enumerate(examples.tokens):
            together.ids[s, len(ids) :] = 123
        assert torch.equal(base.hidden_states(together, 1), first)
        list(base.cache_trunk(examples, tmp_path))


def test_both_directions_are_seen(roberta: Path) -> None:
    """A later word moves the first place; in a causal model it would not."""
    base, examples = load(roberta, "none"), random_examples(LENGTHS, vocabulary=350)
    before = base.hidden_states(examples.collate([0]), 1)
    examples.tokens[0][-1] += 1
    assert far(base.hidden_states(examples.collate([0]), 1)[0, 1], before[0, 1]) > 1e-3


def test_positions_start_after_the_paddings(roberta: Path) -> None:
    base = load(roberta, "none")
    assert base.context_length == 96 == base.model.config.max_position_embeddings - 1
    table, ids = base.model.roberta.embeddings, torch.tensor([[5, 0, 7]])
    want = (
        table.word_embeddings.weight[ids] + table.position_embeddings.weight[1:4] + table.token_type_embeddings.weight
    )
    with torch.no_grad():
        assert (
            far(base.facts.embed(base.model, ids, torch.arange(ids.shape[1])[None]), table.LayerNorm(want)) < CLOSE
        ), "also where a text has a pad token"


# -- loading


def changed(folder: Path, to: Path, change: Callable[[dict[str, Any]], Any], **config: Any) -> Path:
    """A copy of a model folder with other tensors and configuration."""
    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    change(tensors)
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    path = to / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return to


def test_a_published_checkpoint_has_more_than_is_needed(roberta: Path, tmp_path: Path) -> None:
    """roberta-base and -large hold a pooler, position ids, and one of the two names of the tied decoder."""

    def published(tensors: dict[str, Any]) -> None:
        tensors["roberta.pooler.dense.weight"] = torch.zeros(64, 64)
        tensors["roberta.pooler.dense.bias"] = torch.zeros(64)
        tensors["roberta.embeddings.position_ids"] = torch.arange(97)[None]
        tensors["lm_head.decoder.weight"] = tensors["roberta.embeddings.word_embeddings.weight"].clone()

    base = load(changed(roberta, tmp_path / "published", published), "none")
    batch = random_examples(LENGTHS, vocabulary=350).collate(range(6))
    assert torch.equal(base.hidden_states(batch, 1), load(roberta, "none").hidden_states(batch, 1))


@pytest.mark.parametrize("name", ["lm_head.dense.weight", "lm_head.layer_norm.bias", "lm_head.bias"])
def test_a_head_with_missing_weights_is_refused(roberta: Path, tmp_path: Path, name: str) -> None:
    folder = changed(roberta, tmp_path / "headless", lambda tensors: tensors.pop(name))
    with pytest.raises(DataError, match=rf"{name}.*missing: transformers would fill them with random values"):
        load(folder, "none")


@pytest.mark.parametrize("how", ["not tied", "another decoder", "is_decoder"])
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_decoder_that_is_not_the_embeddings_is_refused(
    roberta: Path, tmp_path: Path, how: str, quantization: str
) -> None:
    def decoder(tensors: dict[str, Any]) -> None:
        if how == "another decoder":
            tensors["lm_head.decoder.weight"] = torch.randn(350, 64)
        if how == "not tied":
            tensors["lm_head.decoder.weight"] = tensors["roberta.embeddings.word_embeddings.weight"].clone()
            tensors["lm_head.decoder.bias"] = tensors["lm_head.bias"].clone()

    config = {"not tied": {"tie_word_embeddings": False}, "is_decoder": {"is_decoder": True}}.get(how, {})
    folder = changed(roberta, tmp_path / "untied", decoder, **config)
    with pytest.raises(DataError, match="not tied to its embeddings"):
        load(folder, quantization)


def test_a_checkpoint_of_a_classifier_is_refused(roberta: Path, llama: Path, tmp_path: Path) -> None:
    """Its classes' head is trained, or random; either way the words' head is what zoedge scores with."""
    from transformers import AutoModelForSequenceClassification

    for folder, what in ((roberta, "Roberta"), (llama, "Llama")):
        saved = tmp_path / what
        shutil.copytree(folder, saved)
        AutoModelForSequenceClassification.from_pretrained(folder).save_pretrained(saved)
        with pytest.raises(DataError, match=rf"{what}ForSequenceClassification.*name the pretrained checkpoint"):
            load(saved, "none")


# -- prompts


@pytest.fixture(scope="module")
def masked(roberta: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(roberta)


def row(text: str, label: str = "positive", **more: Any) -> Row:
    return Row("a:1", {"text": text, "label": label, **more})


def encoded(tokenizer: Any, rows: list[Row], limit: int = 90, overflow: str = "error", **options: Any) -> Examples:
    return Mlm(**options).encode(rows, tokenizer, limit, overflow)[0]


def test_the_prompt_is_lm_bffs(masked: Any) -> None:
    """<s> + text + " It was" + <mask> + "." + </s>, and the words with their spaces."""
    examples = encoded(masked, [row("a film is fun "), row(" dull", "negative")])

    def ids(text: str) -> list[int]:
        return masked(text, add_special_tokens=False).input_ids

    one = [1, *ids("a film is fun"), *ids(" It was"), masked.mask_token_id, *ids("."), 2]
    assert examples.tokens == [one, [1, *ids("dull It was"), masked.mask_token_id, *ids("."), 2]]
    assert [t[r[0]] for t, r in zip(examples.tokens, examples.rows)] == [masked.mask_token_id] * 2
    assert examples.targets == [[ids(" terrible")[0], ids(" great")[0]]] * 2 and examples.labels == [1, 0]
    assert examples.tokens[0] == masked("a film is fun It was <mask>.").input_ids, "here the parts are the whole"


def test_a_space_is_part_of_the_word_that_follows(masked: Any) -> None:
    for prompt in ("{text}? {mask}, {other}", "{text}?{mask}, {other}"):
        examples = encoded(masked, [row("a film", other="it was fun")], prompt=prompt)
        assert examples.tokens == [masked("a film?<mask>, it was fun").input_ids]
    first = encoded(masked, [row("a film")], prompt="{mask}: {text}")
    assert first.rows == [[1]] and first.tokens == [masked("<mask>: a film").input_ids]


def test_the_text_is_cut_from_its_end_and_the_mask_stays(masked: Any) -> None:
    long = " ".join(["fun plot of a dull scene"] * 9)
    whole = encoded(masked, [row(long)])
    for limit in (len(whole.tokens[0]) - 1, 30, 8):
        cut = encoded(masked, [row(long)], limit, "truncate")
        assert len(cut.tokens[0]) == limit and cut.tokens[0][cut.rows[0][0]] == masked.mask_token_id
        tail = len(whole.tokens[0]) - whole.rows[0][0] + 2  # It was <mask> . </s>
        assert cut.tokens[0] == whole.tokens[0][: limit - tail] + whole.tokens[0][-tail:]
    with pytest.raises(DataError, match="the prompt alone fills 5 tokens"):
        encoded(masked, [row(long)], 5, "truncate")


def test_the_longest_field_is_cut(masked: Any) -> None:
    rows = [row("fun " * 20, other="dull plot")]
    found = encoded(masked, rows, 20, "truncate", prompt="{other} {text}{mask}")
    assert found.tokens[0][:3] == [1, *masked("dull plot", add_special_tokens=False).input_ids][:3]
    assert len(found.tokens[0]) == 20 and found.rows == [[18]]


def test_too_long_is_an_error_or_dropped(masked: Any) -> None:
    rows = [row("fun " * 40), row("fun")]
    with pytest.raises(DataError, match=r"1 of 2 samples .*truncate \(the longest field, from the right\)"):
        encoded(masked, rows, 20)
    found, counts = Mlm().encode(rows, masked, 20, "drop")
    assert len(found) == 1 and counts == {"truncated": 0, "dropped": 1}


@pytest.mark.parametrize("word,said", [(" so very", "2 tokens"), ("", "0 tokens"), (" terrible", "1 token ")])
def test_a_mask_holds_one_word(masked: Any, word: str, said: str) -> None:
    """The third is another option's token: ' terrible' twice cannot be meant, nor is it let through by a space."""
    options = {"negative": " terrible", "positive": word} if word != " terrible" else {"a": " dull", "b": " dull"}
    if word == " terrible":
        with pytest.raises(ValueError, match="all different"):
            Mlm(options=options)
    else:
        with pytest.raises(DataError, match=rf"is {said}.*a mask holds one"):
            encoded(masked, [row("a")], options=options)


@pytest.mark.parametrize(
    "prompt", ["{text} It was", "{text}{mask}{mask}", "It was{mask}", "{text {mask}", "{text!r}{mask}"]
)
def test_prompts_that_cannot_be_meant(prompt: str) -> None:
    with pytest.raises(ValueError, match=r"^prompt: "):
        Mlm(prompt=prompt)


def test_the_loss_is_over_the_words_at_the_mask(roberta: Path, masked: Any) -> None:
    texts = ["a film is fun", "a dull plot of a very boring story", "bad"]
    examples = encoded(masked, [row(t, "negative" if i else "positive") for i, t in enumerate(texts)])
    base, model = load(roberta, "none"), reference(roberta, "none")
    losses = Mlm().make_training(examples, 0, 3).score(base, examples.collate([0, 1, 2]), 2)
    assert losses.dtype == torch.float64 and far(losses[0], losses[1]) < CLOSE
    for i, text in enumerate(texts):
        ids = masked(f"{text} It was<mask>.", return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, (ids[0] == masked.mask_token_id).nonzero()[0, 0]]
        both = torch.log_softmax(logits[examples.targets[0]].double(), -1)
        assert losses[0, i].item() == pytest.approx(-both[0 if i else 1].item(), abs=CLOSE)


# -- runs


@pytest.fixture
def tuned(recipe_file: Path, roberta: Path) -> list[str]:
    """The overrides that make the tiny recipe one of RoBERTa's: query and value, all layers."""
    task = "task={name: mlm, prompt: '{text} It was{mask}.', options: {negative: ' terrible', positive: ' great'}}"
    return [f"model.source={roberta}", task, "space.targets=[query, value]", "space.layers=all"]


def test_runs_train_replay_and_are_exported(recipe_file: Path, tuned: list[str], tmp_path: Path) -> None:
    """Over every kind of base; the exports of all are looked at by one fresh process."""
    jobs: list[tuple[str, Path, Any]] = []
    ids = check.make_probe_ids(350, 96)
    for quantization in ("nf4", "int8", "none"):
        some = ["rule.lr=0.05", "rule.schedule=constant", "train.steps=6", f"model.quantization={quantization}"]
        bench = setup.Measuring.build(read_recipe(str(recipe_file), [*tuned, *some]))
        assert list(bench.space.shapes) == [
            f"roberta.encoder.layer.{i}.attention.self.{which}" for i in (0, 1) for which in ("query", "value")
        ]
        before = check.compute_logits(bench.base, bench.space, ids)
        folder = tmp_path / quantization
        folder.mkdir()
        with setup.begin_run(bench, folder) as log:
            assert all(record.g[0] for record in engine.play(bench.run(log), 6))
            log.finish(digests.digest(bench.space))
        assert far(check.compute_logits(bench.base, bench.space, ids), before) > 0.01
        log = Log.open(folder / run_folder.LOG_FILE)
        again = replay.build_replay_run(log)
        for _ in engine.play(again, 6):
            pass
        assert digests.digest(again.space) == digests.digest(bench.space)
        peft = export_peft.write_peft(again, log, bench.recipe, folder / "peft", bench.base.path)
        assert export_peft.load_adapter(peft, again.space).keys() == dict(again.space.tensors()).keys()
        card = (peft / "README.md").read_text()
        assert "AutoModelForMaskedLM" in card and "CausalLM" not in card
        merged = export_merged.write_merged(bench.recipe, bench.space, folder / "merged", "fp32", log=log).folder
        jobs += [("peft", peft, bench), ("merged", merged, bench)]
    assert max(check.check_exports(jobs)) < CLOSE


@pytest.mark.parametrize(
    "source,task,said",
    [
        ("roberta", "classify", "classify reads what comes next, and this base fills a mask"),
        ("llama", "mlm", "mlm fills a mask, and this base reads what comes next"),
    ],
)
def test_a_task_of_another_kind_of_model_is_refused(
    request: Any, recipe_file: Path, source: str, task: str, said: str
) -> None:
    folder = request.getfixturevalue(source)
    recipe = read_recipe(str(recipe_file), [f"model.source={folder}", f"task={task}", "space.targets=all"])
    with pytest.raises(DataError, match=f"{said}. Use task:"):
        setup.Measuring.build(recipe)


def test_generate_fills_a_mask_after_the_prompt(recipe_file: Path, tuned: list[str]) -> None:
    from zoedge.commands.generate import choose_option

    bench = setup.Measuring.build(read_recipe(str(recipe_file), tuned))
    examples = encoded(bench.base.tokenizer, [row("a film is fun")])
    share = bench.task.outputs(bench.base, examples.collate([0]), 1)[0, 0].softmax(-1).max().item()
    said = choose_option(bench, "a film is fun It was")
    assert said.startswith("a film is fun It was ") and f"{100 * share:.1f} %" in said


def test_a_tokenizer_without_a_mask_is_refused(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="this tokenizer has none"):
        encoded(tokenizer, [row("a")])


def test_a_masked_model_continues_nothing(roberta: Path) -> None:
    with pytest.raises(DataError, match="RobertaForMaskedLM fills masks"):
        load(roberta, "none").generate("a film", 3)


# -- why some runs stay at 50 %: docs/roberta-analysis.md


def test_the_page_names_tests_that_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "roberta-analysis.md").read_text()))
    assert len(named) == 3 and named <= globals().keys()


def test_a_new_head_is_random_and_as_often_wrong_as_right(roberta: Path, masked: Any, reviews: Path) -> None:
    """transformers gives a head of classes without an error; the head with its rows swapped is as likely, and has 1 - a."""
    from transformers import AutoModelForSequenceClassification

    def head(seed: int) -> Any:
        torch.manual_seed(seed)
        return AutoModelForSequenceClassification.from_pretrained(roberta, num_labels=2).eval()

    rows = [json.loads(line) for line in reviews.read_text().splitlines()]
    batch = masked([r["text"] for r in rows], padding=True, return_tensors="pt")
    labels = torch.tensor([r["label"] == "positive" for r in rows]).long()

    @torch.no_grad()
    def right(model: Any) -> int:
        return int((model(**batch).logits.argmax(-1) == labels).sum())

    model = head(0)
    assert far(model.classifier.out_proj.weight, head(1).classifier.out_proj.weight) > 1e-3
    assert torch.equal(
        model.roberta.embeddings.word_embeddings.weight, head(1).roberta.embeddings.word_embeddings.weight
    )
    before = right(model)
    model.classifier.out_proj.weight.data = model.classifier.out_proj.weight.data.flip(0)
    assert before + right(model) == len(rows)


Few = Callable[..., setup.Measuring]


@pytest.fixture
def few(recipe_file: Path, tuned: list[str]) -> Few:
    """A bench over 60 rows with the papers' LoRA (r 8, alpha 16, query and value, B = 0) and eps 1e-3."""
    paper = [
        "space.rank=8", "space.alpha=16", "estimator.eps=1e-3", "model.quantization=none", "data.valid=", "train.batch=16",
        "noise=normal", "rule.schedule=constant",
    ]  # fmt: skip
    return lambda *more: setup.Measuring.build(read_recipe(str(recipe_file), [*tuned, *paper, *more]))


def everything(bench: setup.Measuring) -> Batch:
    return bench.texts.train.collate(range(len(bench.texts.train)))


def right_of(outputs: torch.Tensor, batch: Batch) -> torch.Tensor:
    return (outputs.argmax(-1) == batch.labels).sum(-1)


def test_accuracy_is_flat_where_b_is_zero(few: Few) -> None:
    """eps 1e-3 and B = 0: no prediction flips in 20 directions, so every accuracy step is zero. The loss does differ."""
    bench = few()
    batch, leaf = everything(bench), bench.space.leaves()[0]
    assert all(not value.any() for name, value in bench.space.tensors() if name.endswith("lora_B"))
    flips, moved, slopes = {1e-3: 0, 1.0: 0}, 0.0, []
    for query in range(20):
        z = Normal().draw(Key(1, 1, query), leaf)
        for eps in flips:
            with bench.space.visit([lambda _: z * eps, lambda _: z * -eps]):
                outputs = bench.task.outputs(bench.base, batch, 2)
            counts = right_of(outputs, batch)
            flips[eps] += int(counts[0] != counts[1])
            if eps == 1e-3:
                moved = max(moved, far(*outputs))
                slopes.append(far(*torch.log_softmax(outputs, -1)))
    assert flips[1e-3] == 0 and flips[1.0] >= 8
    assert moved < 0.01 and min(slopes) > 1e-6


def test_the_steps_must_add_up(few: Few, tmp_path: Path) -> None:
    """lr * steps of 500 steps at 1e-5 moves nothing; the paper's 100,000 at 1e-4 add up to 2,000 times as much."""
    found = {}
    for lr, steps in ((5e-5, 100), (2e-2, 300)):
        bench = few(f"rule.lr={lr}", f"train.steps={steps}")
        batch = everything(bench)
        before = bench.task.outputs(bench.base, batch, 1)
        (tmp_path / str(steps)).mkdir()
        with setup.begin_run(bench, tmp_path / str(steps)) as log:
            for _ in engine.play(bench.run(log), steps):
                pass
        with bench.space.visit([lambda _: None]):
            after = bench.task.outputs(bench.base, batch, 1)
        found[steps] = (far(after, before), int(right_of(after, batch)) - int(right_of(before, batch)))
    assert found[100][0] < 0.01 and found[100][1] == 0
    assert found[300][0] > 0.5 and found[300][1] >= 10, "of 60 rows"
