"""`zoedge init`: what is guessed from rows of every kind, and that the recipe validates and overwrites nothing."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.commands import Done
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from zoedge.cli import init as command
from zoedge.commands.init import Draft, draft_recipe
from zoedge.commands.init.guess import guess_task
from zoedge.commands.init.options import choose_options, single_token
from zoedge.commands.validate import validate_recipe
from zoedge.errors import DataError, UsageError
from zoedge.recipe.reading import read_recipe
from zoedge.scoring.rows.row import Row

CHAT = [{"role": "user", "content": "a #"}, {"role": "assistant", "content": "b"}]
MAILS = [("My invoice is wrong", "billing"), ("The app crashes", "technical support"), ("A quote please", "sales")]


def rows_of(*tables: dict[str, Any]) -> list[Row]:
    return [Row(f"rows.jsonl:{i}", table) for i, table in enumerate(tables, 1)]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, tables: list[dict[str, Any]]) -> str:
    if name.endswith(".csv"):
        with open(name, "w", newline="") as file:
            writer = csv.DictWriter(file, list(tables[0]))
            writer.writeheader()
            writer.writerows(tables)
    else:
        Path(name).write_text("".join(json.dumps(table) + "\n" for table in tables))
    return name


def mails(count: int = 60) -> list[dict[str, Any]]:
    return [{"id": i, "Mail Text": f"{text} {i}", "Department": d} for i in range(count) for text, d in [MAILS[i % 3]]]


def validated(draft: Draft, source: str) -> dict[str, Any]:
    """The recipe as it is written, after zoedge has read and validated it."""
    Path("made.yaml").write_text(draft.dump(source))
    assert validate_recipe("made.yaml").startswith("llama, 3 layers")
    table: dict[str, Any] = yaml.safe_load(Path("made.yaml").read_text())
    assert read_recipe("made.yaml") == draft.recipe("made")
    return table


# -- the guess


def test_a_column_of_few_values_is_the_label() -> None:
    guess = guess_task(rows_of(*mails()), "m")
    assert (guess.task, guess.label, guess.texts) == ("classify", "Department", ["Mail Text"])
    assert guess.labels == ["billing", "sales", "technical support"]
    assert guess.reason == "Department has 3 different values in 60 rows"


@pytest.mark.parametrize(
    ("row", "task", "details"),
    [
        ({"text": "a b", "label": 1}, "classify", {"labels": ["0", "1"], "label": "label"}),
        ({"text": "a b", "sentiment": True}, "classify", {"labels": ["false", "true"]}),
        ({"prompt": "a b", "completion": "x"}, "classify", {"label": "completion", "texts": ["prompt"]}),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "chat",
            {"options": {}},
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "source": "x"},
            "chat",
            {},
        ),
        ({"instruction": "a #", "input": "", "output": "b #"}, "chat", {}),
        (
            {"question": "a #", "answer": "b #"},
            "chat",
            {"options": {"fields": {"prompt": "question", "completion": "answer"}}},
        ),
        ({"text": "a b #"}, "lm", {"texts": ["text"]}),
        ({"body": "a b #", "id": "x#"}, "lm", {"texts": ["body"]}),
        (
            {"prompt": "a #", "chosen": "b", "rejected": "c"},
            "choose",
            {"choices": ["chosen", "rejected"], "label": "chosen"},
        ),
        (
            {"question": "a #", "choices": ["b", "c"], "answer": 1},
            "choose",
            {"choices": ["choices"], "label": "answer"},
        ),
    ],
)
def test_rows_of_every_kind(row: dict[str, Any], task: str, details: dict[str, Any]) -> None:
    def numbered(value: Any, i: int) -> Any:
        if isinstance(value, bool):
            return bool(i % 2)
        if isinstance(value, int):
            return i % 2
        return (
            value.replace("#", str(i))
            if isinstance(value, str) and value != "x"
            else "xy"[i % 2]
            if value == "x"
            else value
        )

    tables = [{key: numbered(value, i) for key, value in row.items()} for i in range(40)]
    guess = guess_task(rows_of(*tables), "m")
    assert guess.task == task
    assert {key: vars(guess)[key] for key in details} == details


def test_what_is_no_label() -> None:
    tables = [{"text": f"row {i}", "score": i / 3, "rank": i, "name": f"n{i}", "kind": "same"} for i in range(30)]
    assert guess_task(rows_of(*tables), "m").task == "lm"
    assert guess_task(rows_of(*tables), "m", "rank").label == "rank"
    with pytest.raises(UsageError, match="--label: no row has 'rnk' - did you mean 'rank'"):
        guess_task(rows_of(*tables), "m", "rnk")


def test_rows_with_gaps_are_left_out(llama: Path) -> None:
    tables = [*mails(57), {"id": 58, "Mail Text": "Who knows", "Department": ""}]
    tables.append({"id": 59, "Mail Text": "", "Department": "sales"})
    assert guess_task(rows_of(*tables), "m").options == {"without": {"Mail Text": "", "Department": ""}}
    source = write("gaps.csv", tables)
    assert (
        sum(validated(draft_recipe(source, str(llama)), source)["data"][which]["split"] for which in ("valid", "test"))
        == 18
    )
    half = [{"text": f"a {i}", "note": "b c" if i % 2 else None} for i in range(40)]
    assert guess_task(rows_of(*half), "m").texts == ["text"]


@pytest.mark.parametrize(
    ("tables", "sentence"),
    [
        ([{"a": 1}, {"a": 2}], "m: no column of texts in all rows. Each row needs a text, and a label"),
        ([{"prompt": "a", "chosen": [1], "rejected": [2]}], "chosen and rejected are no texts"),
        ([{"chosen": "a", "rejected": "b"}], "and no text that they answer. Add a column `prompt`"),
    ],
)
def test_rows_without_anything_to_learn(tables: list[dict[str, Any]], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        guess_task(rows_of(*tables), "m")


# -- options of one token


def words_tokenizer(*words: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(("<unk>", "Label", ":", *words))}
    raw = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")


def test_labels_are_their_own_words_a_word_of_them_or_letters() -> None:
    labels = ["billing", "technical support", "Sales"]
    own = choose_options(labels, words_tokenizer("billing", "technical", "support", "sales"))
    assert own == ({"billing": " billing", "technical support": " technical", "Sales": " sales"}, "")
    letters = choose_options(labels, words_tokenizer("billing", "A", "B", "C"))
    assert letters.words == {"billing": " A", "technical support": " B", "Sales": " C"}
    assert letters.legend == "A: billing\nB: technical support\nC: Sales\n"
    shared = choose_options(["tax office", "tax law"], words_tokenizer("tax", "law", "office"))
    assert shared.words == {"tax office": " office", "tax law": " law"}  # no token stands for two
    whole = choose_options(labels, words_tokenizer("billing"))
    assert whole.words == {label: f" {label}" for label in labels}
    many = [f"label {i}" for i in range(30)]
    numbers = choose_options(many, words_tokenizer(*map(str, range(1, 40))))
    assert numbers.words["label 29"] == " 30" and "30: label 29\n" in numbers.legend


def test_an_unknown_word_is_no_token() -> None:
    assert single_token(" nothing", words_tokenizer("a")) is None and single_token(" a", words_tokenizer("a")) == 3


# -- the recipe


def test_mails_become_a_recipe_that_validates(llama: Path) -> None:
    source = write("mails.csv", mails())
    draft = draft_recipe(source, str(llama))
    table = validated(draft, source)
    assert table["data"] == {
        "train": source,
        "valid": {"split": 7},
        "test": {"split": 12},
        "fields": {"mail_text": "Mail Text"},
        "max_length": table["data"]["max_length"],
        "on_overflow": "truncate",
    }
    assert table["task"]["prompt"].endswith("Department:") and table["task"]["prompt"].startswith("{mail_text}\n")
    assert list(table["task"]["options"]) == ["billing", "sales", "technical support"]
    recipe = draft.recipe()
    assert recipe.space.start == "probe" and not recipe.auto, "nothing is to be searched for"  # type: ignore[attr-defined]
    assert draft.preview is not None and len(draft.preview.rows) == 3
    text = draft.dump(source)
    assert text.count("\n# ") >= 5 and text.startswith("# Made by `zoedge init mails.csv`")


@pytest.mark.parametrize(
    ("table", "task"),
    [
        (
            {"messages": [{"role": "user", "content": "a #"}, {"role": "assistant", "content": "b"}]},
            {"name": "chat", "format": "chatml"},
        ),
        ({"text": "a b c #"}, {"name": "lm"}),
        ({"my text": "a b c #"}, {"name": "lm", "text": "my_text"}),
        (
            {"prompt": "a #", "chosen": "b c", "rejected": "d"},
            {
                "name": "choose",
                "prompt": "{prompt}",
                "option": " {choice}",
                "label": "chosen",
                "choices": ["chosen", "rejected"],
            },
        ),
    ],
)
def test_other_rows_become_recipes_that_validate(table: dict[str, Any], task: dict[str, Any], llama: Path) -> None:
    tables = [json.loads(json.dumps(table).replace("#", str(i))) for i in range(45)]
    source = write("rows.jsonl", tables)
    found = validated(draft_recipe(source, str(llama)), source)
    assert found["task"] == task and found["data"]["test"] == {"split": 9}


def test_splits_follow_the_rows(llama: Path) -> None:
    assert "test" not in draft_recipe(write("few.csv", mails(30)), str(llama)).table["data"]
    Path("folder").mkdir()
    for name in ("train", "valid", "test"):
        write(f"folder/{name}.csv", mails(45))
    data = draft_recipe("folder", str(llama)).table["data"]
    assert "valid" not in data and "test" not in data
    many = draft_recipe(write("many.csv", mails(3000)), str(llama)).table["data"]
    assert (many["limit"], many["valid"], many["test"]) == (2000, {"split": 200}, {"split": 500})


def test_a_prompt_and_a_label_of_the_users_own(llama: Path) -> None:
    source = write("mails.csv", mails())
    draft = draft_recipe(source, str(llama), "Department", "{mail_text} It is for")
    assert validated(draft, source)["task"]["prompt"] == "{mail_text} It is for"
    with pytest.raises(UsageError, match="--prompt goes with rows that have a label"):
        chat = write("c.jsonl", [{"question": f"a {i}", "answer": f"b {i}"} for i in range(20)])
        draft_recipe(chat, str(llama), None, "{question}")
    Path("a.yaml").write_text("version: 1\n")
    with pytest.raises(UsageError, match="init takes rows"):
        draft_recipe("a.yaml", str(llama))


# -- as a user types it


def test_init_shows_rows_and_writes_a_file_once(tmp_path: Path, llama: Path, zoedge: Callable[..., Done]) -> None:
    write("mails.csv", mails())
    done = zoedge("init", "mails.csv", "--model", llama, "--look")
    assert done.code == 0 and done.out.count("mails.csv:") >= 3 and "[brackets] mark what is scored" in done.out
    assert "rows     41 train, 7 valid, 12 test; task classify" in done.out and "time     about 0:" in done.out
    assert "zero-shot" in done.out and "always the commonest label" in done.out
    assert done.out.endswith("mails.yaml   look at it, then: zoedge finetune mails.yaml\n")
    before = (tmp_path / "mails.yaml").read_bytes()
    again = zoedge("init", "mails.csv", "--model", llama)
    assert (again.code, again.err) == (2, "zoedge: mails.yaml is there already; name another file: -o FILE.yaml\n")
    assert (tmp_path / "mails.yaml").read_bytes() == before
    assert zoedge("init", "nowhere.csv", "-o", "x.yaml").code == 3 and not Path("x.yaml").exists()


def test_questions_are_asked_on_a_terminal(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = [{**row, "urgent": "yes" if i % 2 else "no"} for i, row in enumerate(mails())]
    source = write("mails.csv", tables)
    answers = iter(["urgent", "{mail_text}\\nUrgent?"])
    asked: list[str] = []

    def prompt(text: str, default: str) -> str:
        asked.append(default)
        return next(answers, default)

    monkeypatch.setattr(command.typer, "prompt", prompt)
    draft = command.ask(draft_recipe(source, str(llama)), source, str(llama), None, None)
    assert asked[0] == "Department" and asked[1].endswith("\\nUrgent:")
    assert draft.table["task"]["label"] == "urgent" and draft.table["task"]["prompt"] == "{mail_text}\nUrgent?"


def test_names_of_recipes() -> None:
    names = {"mails.csv": "mails", "org/My Set:train": "My-Set", "data/rows": "rows", "trec": "trec", "ä.csv": "recipe"}
    assert {source: command.name_file(source) for source in names} == names
