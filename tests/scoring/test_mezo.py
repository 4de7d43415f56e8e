"""MeZO's tasks: each shipped recipe makes the paper's exact strings of rows in the data set's own fields, and trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.models import save
from helpers.paths import FIXTURES
from helpers.runs import replays

from zoedge.commands.finetune import train
from zoedge.recipe.reading import list_shipped, read_recipe
from zoedge.recipe.recipe import Recipe
from zoedge.run.display import make_display
from zoedge.scoring.rows.files import read_rows
from zoedge.scoring.tasks._examples import Examples

EXACT = {  # of the first row: (prompt, what is scored after it, option by option)
    "sst2": ("a quietly moving film that earns its tears It was", [" terrible", " great"]),
    "rte": (
        "The bridge over the Elbe was closed on Monday after engineers found cracks.\n"
        'Does this mean that "The bridge was closed." is true? Yes or No?\n',
        ["Yes", "No"],
    ),
    "cb": (
        "Suppose He said he knew that the key was under the mat. Can we infer that "
        '"the key was under the mat"? Yes, No, or Maybe?\n',
        ["Yes", "No", "Maybe"],
    ),
    "boolq": (
        "Moons -- Mercury is a planet. The Moon is smaller than Mercury, but larger than Pluto. "
        "Is the moon larger than mercury?\n",
        ["Yes", "No"],
    ),
    "wsc": (
        "The jug would not fit in the box because it was too wide.\nIn the previous sentence, does the pronoun "
        '"it" refer to The jug? Yes or No?\n',
        ["No", "Yes"],
    ),
    "wic": (
        'Does the word "bank" have the same meaning in these two sentences? Yes, No?\n'
        "We sat on the bank of the river.\nThe bank raised its rates.\n",
        ["No", "Yes"],
    ),
    "multirc": (
        "Lena took the early ferry. She met her brother at the pier.\nQuestion: Whom did Lena meet?\n"
        'I found this answer "Her brother". Is that correct? Yes or No?\n',
        ["No", "Yes"],
    ),
    "copa": ("The glass fell from the table so", [" it broke.", " it floated."]),
    "record": (
        "Turin hosts the fair in May.\n- Maria Conti will open it\n- Tickets sell fast\n-",
        [
            " The mayor thanked Turin for opening the fair.",
            " The mayor thanked Maria Conti for opening the fair.",
        ],
    ),
    "squad": (
        "Title: Tea\nContext: Tea reached Portugal in the 16th century.\nQuestion: When did tea reach Portugal?\nAnswer:",
        [" the 16th century\n"],
    ),
    "drop": (
        "Passage: The Hawks scored 14 points in the first half and 10 in the second.\n"
        "Question: How many points did the Hawks score?\nAnswer:",
        [" 24\n"],
    ),
}  # fmt: skip
RIGHT = {"sst2": 1, "rte": 0, "cb": 0, "boolq": 1, "wsc": 1, "wic": 0, "multirc": 1, "copa": 0, "record": 1}


def recipe_of(name: str, *overrides: str) -> Recipe:
    return read_recipe(f"mezo-{name}", list(overrides))


def encoded(name: str, tokenizer: Any, limit: int = 4096, overflow: str = "error") -> Examples:
    rows, faults = read_rows(FIXTURES / f"{name}.jsonl", f"{name}.jsonl")
    examples, _ = recipe_of(name).task.encode(rows, tokenizer, limit, overflow)
    assert not faults and len(examples) == len(rows) >= 4
    return examples


def test_every_recipe_has_rows_and_a_string() -> None:
    known = {path.stem.removeprefix("mezo-") for path in list_shipped() if path.stem.startswith("mezo-")}
    assert known == set(EXACT) == {path.stem for path in FIXTURES.glob("*.jsonl")} and len(known) == 11


@pytest.mark.parametrize("name", EXACT)
def test_the_exact_text_and_tokens_that_are_scored(name: str, tokenizer: Any) -> None:
    prompt, options = EXACT[name]
    whole = encoded(name, tokenizer)
    examples = whole.choices[0] if whole.choices else whole
    head = tokenizer(prompt).input_ids
    found = []
    if len(examples.targets[0]) == len(options) and examples.rows[0] == [len(head) - 1]:  # one token an option
        assert examples.tokens[0] == head
        found = [tokenizer.decode([i]) for i in examples.targets[0]]
    else:
        for j, option in enumerate(options):
            ids, rows, targets = examples.tokens[j], examples.rows[j], examples.targets[j]
            assert [*ids, targets[-1]] == tokenizer(prompt + option).input_ids
            assert tokenizer.decode(ids[: rows[0] + 1]) == prompt and rows[-1] == len(ids) - 1
            found.append(tokenizer.decode(targets))
    assert found == options
    assert whole.labels[0] == RIGHT.get(name, 0)
    if whole.choices:  # training reads the right one alone
        assert examples.labels == [int(j == RIGHT[name]) for j in range(len(options))]
        assert tokenizer.decode(whole.targets[0]) == options[RIGHT[name]]


def test_copa_lower_cases_all_first_words_but_i(tokenizer: Any) -> None:
    _, second, *_ = encoded("copa", tokenizer).choices
    assert [tokenizer.decode(t) for t in second.targets] == [" I was hungry.", " the room was hot."]
    assert tokenizer.decode(second.tokens[0][: second.rows[0][0] + 1]) == "I opened the window because"


def test_boolq_adds_no_second_question_mark(tokenizer: Any) -> None:
    assert "Can penguins swim?\n" in tokenizer.decode(encoded("boolq", tokenizer).tokens[2])


def test_record_takes_several_right_entities(tokenizer: Any) -> None:
    whole = encoded("record", tokenizer)
    assert whole.choices[2].labels == [0, 1, 1, 0] and whole.labels[2] == 1
    assert [len(some) for some in whole.choices] == [2, 3, 4, 2]


def test_gold_answers_are_all_kept(tokenizer: Any) -> None:
    assert encoded("squad", tokenizer).notes[0]["answers"] == ["the 16th century", "16th century"]
    assert encoded("drop", tokenizer).notes[1]["answers"] == ["first half", "first"]


@pytest.mark.parametrize("name", ["rte", "copa", "record", "squad"])
def test_a_long_prompt_is_cut_from_the_left_and_the_option_is_whole(name: str, tokenizer: Any) -> None:
    whole = encoded(name, tokenizer)
    longest = max(map(len, (ids for some in (whole.choices or [whole]) for ids in some.tokens)))
    if name == "squad":  # 50 tokens of its own are kept free after a prompt
        longest = 50 + max(rows[0] + 1 for rows in whole.rows)
    limit = longest - 5
    rows, _ = read_rows(FIXTURES / f"{name}.jsonl", name)
    cut, counts = recipe_of(name).task.encode(rows, tokenizer, limit, "truncate")
    assert counts["truncated"] >= 1 and cut.targets == whole.targets
    for before, after in zip(whole.tokens, cut.tokens):
        assert before[len(before) - len(after) :] == after
    assert [some.targets for some in cut.choices] == [some.targets for some in whole.choices]
    for some in cut.choices:  # the same tokens are missing for every candidate
        assert len({tuple(ids[: rows[0] + 1]) for ids, rows in zip(some.tokens, some.rows)}) == 1


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A one-layer OPT whose context holds whole passages."""
    from transformers import OPTConfig

    config = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=32, ffn_dim=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=1024, word_embed_proj_dim=32, dropout=0.0, bos_token_id=2, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    return save(tmp_path_factory.mktemp("models") / "opt", config, tokenizer)


@pytest.mark.parametrize("name", EXACT)
def test_a_recipe_trains_and_replays(name: str, opt: Path, tmp_path: Path) -> None:
    rows = FIXTURES / f"{name}.jsonl"
    recipe = recipe_of(
        name, f"model.source={opt}", f"data.train={rows}", f"data.valid={rows}", f"data.test={rows}", "train.steps=4",
        "train.batch=3", "eval.every=2", "eval.select=last", "output.export=[]", "model.quantization=none",
    )  # fmt: skip
    outcome = train(recipe, tmp_path / "run", make_display("quiet"))
    assert outcome.after is not None and outcome.before is not None and outcome.after.count == 4
    assert outcome.after.loss > 0 and outcome.after.loss != outcome.before.loss
    generates = name in ("squad", "drop")
    assert (outcome.after.f1 is not None) == (outcome.after.exact_match is not None) == generates
    assert (outcome.after.accuracy is None) == (outcome.after.majority is None) == generates
    assert train(recipe, tmp_path / "run", make_display("quiet")).after == outcome.after  # from what was noted
    assert replays(tmp_path / "run")
