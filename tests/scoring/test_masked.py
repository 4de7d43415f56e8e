"""MeZO's masked-model tasks: each shipped recipe makes LM-BFF's exact tokens of rows in the hub's own fields, and trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.models import masking, save_masked
from helpers.paths import FIXTURES, ROOT
from helpers.runs import replays

from zoedge.commands.finetune import train
from zoedge.recipe.reading import list_shipped, read_recipe
from zoedge.recipe.recipe import Recipe
from zoedge.run.display import make_display
from zoedge.scoring.rows.fields import rename_fields, without_rows
from zoedge.scoring.rows.files import read_rows
from zoedge.scoring.tasks._examples import Examples

ROWS = {path.stem: path for path in [FIXTURES / "sst2.jsonl", *(FIXTURES / "roberta").glob("*.jsonl")]}
RECIPES = [path.stem for path in list_shipped() if path.stem.startswith("roberta-")]
EXACT = {  # of the first row: (its tokens, the words at the mask, the label's)
    "sst2": (
        "<s> a Ġquietly Ġmoving Ġfilm Ġthat Ġearns Ġits Ġtears ĠIt Ġwas <mask> . </s>",
        "Ġterrible Ġgreat", "Ġgreat",
    ),
    "sst5": (
        "<s> apparently Ġreassembled Ġfrom Ġthe Ġcutting - room Ġfloor Ġof Ġany Ġgiven Ġdaytime Ġsoap Ġ. "
        "ĠIt Ġwas <mask> . </s>",
        "Ġterrible Ġbad Ġokay Ġgood Ġgreat", "Ġbad",
    ),
    "trec": (
        "<s> <mask> : ĠHow Ġdid Ġserfdom Ġdevelop Ġin Ġand Ġthen Ġleave ĠRussia Ġ? </s>",
        "ĠDescription ĠEntity ĠExpression ĠHuman ĠLocation ĠNumber", "ĠDescription",
    ),
    "mnli": (
        "<s> Conceptually Ġcream Ġskimming Ġhas Ġtwo Ġbasic Ġdimensions Ġ- Ġproduct Ġand Ġgeography ? <mask> , "
        "Ġproduct Ġand Ġgeography Ġare Ġwhat Ġmake Ġcream Ġskimming Ġwork . </s>",
        "ĠYes ĠMaybe ĠNo", "ĠMaybe",
    ),
    "snli": (
        "<s> A Ġperson Ġon Ġa Ġhorse Ġjumps Ġover Ġa Ġbroken Ġdown Ġairplane ? <mask> , "
        "Ġa Ġperson Ġis Ġtraining Ġhis Ġhorse Ġfor Ġa Ġcompetition . </s>",
        "ĠYes ĠMaybe ĠNo", "ĠMaybe",
    ),
    "rte": (
        "<s> Reagan Ġwas Ġseriously Ġwounded Ġby Ġa Ġbullet Ġfired Ġby ĠJohn ĠHinckley ĠJr . Ġin Ġan Ġattempted "
        "Ġassassination , Ġbut Ġmade Ġa Ġremarkably Ġspeedy Ġrecovery ? <mask> , "
        "Ġreagan Ġsurvived Ġan Ġattempted Ġassassin 's Ġbullets . </s>",
        "ĠYes ĠNo", "ĠYes",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def masked() -> Any:
    """A byte-level BPE like RoBERTa's that keeps every word of the texts here whole."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    every = [token for tokens, words, _ in EXACT.values() for token in f"{tokens} {words}".split()]
    raw.train_from_iterator([token.replace("Ġ", " ") for token in every if not token.startswith("<")], trainer)
    return masking(raw)


def encoded(name: str, tokenizer: Any) -> Examples:
    recipe = read_recipe(name)
    rows, faults = read_rows(ROWS[name.split("-")[1]], name)
    rows = without_rows(rename_fields(rows, recipe.data.fields), recipe.data.without)
    examples, counts = recipe.task.encode(rows, tokenizer, recipe.data.max_length, "error")
    assert not faults and len(examples) == len(rows) >= 4 and not any(counts.values())
    return examples


def test_every_recipe_has_rows_and_tokens() -> None:
    assert {name.split("-")[1] for name in RECIPES} == EXACT.keys() == ROWS.keys() and len(EXACT) == 6


@pytest.mark.parametrize("name", RECIPES)
def test_the_exact_tokens_the_mask_and_the_words(name: str, masked: Any) -> None:
    tokens, words, right = EXACT[name.split("-")[1]]
    examples, named = encoded(name, masked), masked.convert_ids_to_tokens
    assert named(examples.tokens[0]) == tokens.split()
    assert examples.rows[0] == [tokens.split().index("<mask>")]
    assert all(
        ids[at] == masked.mask_token_id and ids.count(ids[at]) == 1
        for ids, (at,) in zip(examples.tokens, examples.rows)
    )
    assert named(examples.targets[0]) == words.split()
    assert named(examples.targets[0][examples.labels[0]]) == right


def test_a_premise_loses_its_last_character_whatever_it_is(masked: Any) -> None:
    """As in the paper's code: most end in a full stop, some captions of SNLI do not."""
    whole = masked.decode(encoded("roberta-snli-mezo", masked).tokens[3])
    assert whole == "<s>Children smiling and waving at camer?<mask>, there are children present</s>"


def overridden(name: str, folder: Path, tmp_path: Path, *more: str) -> Recipe:
    rows = tmp_path / "rows.jsonl"
    text = ROWS[name.split("-")[1]].read_text()
    if read_recipe(name).data.without:  # a pair whose annotators did not agree
        text += json.dumps({"premise": "A dog runs.", "hypothesis": "It is late.", "label": -1}) + "\n"
    rows.write_text(text)
    return read_recipe(
        name,
        [
            f"model.source={folder}", f"data.train={rows}", f"data.valid={rows}", f"data.test={rows}", "data.per_class=1",
            "train.steps=4", "train.batch=3", "eval.every=2", "eval.calibrate=4", *more,
        ],
    )  # fmt: skip


LORA = (  # docs/tasks.md
    "space={name: lora, rank: 8, alpha: 16, targets: [query, value], layers: all}",
    "rule={name: sgd, lr: 1e-4, weight_decay: 0.1}",
    "output.export=[peft]",
)  # fmt: skip


@pytest.mark.parametrize(("name", "more"), [*((name, ()) for name in RECIPES), ("roberta-trec-mezo", LORA)])
def test_a_recipe_trains_and_replays(name: str, more: tuple[str, ...], masked: Any, tmp_path: Path) -> None:
    """Four steps, few-shot; the base, the rows and how long are all that is another than for the user."""
    recipe = overridden(name, save_masked(tmp_path / "roberta", masked), tmp_path, *more)
    outcome = train(recipe, tmp_path / "run", make_display("quiet"))
    assert outcome.after is not None and outcome.after.count == len(ROWS[name.split("-")[1]].read_text().splitlines())
    assert (tmp_path / "run" / "adapter").is_dir() == ("peft" in recipe.output.export)
    assert replays(tmp_path / "run")


def test_the_commands_for_lora_are_those_of_the_page() -> None:
    page = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    assert all(f"'{override}'" in page for override in LORA)
    lora, sst2 = read_recipe("roberta-sst2-mezo", list(LORA)), read_recipe("roberta-sst2-lora")
    assert lora.semantic() == sst2.semantic()
