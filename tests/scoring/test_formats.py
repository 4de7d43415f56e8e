"""Other tools' data as it is: what a row of each format becomes, by exact texts and tokens; folders; and what is refused."""

# ruff: noqa: E501 - a case a line
from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.commands import Done
from helpers.paths import ROOT

from zoedge.errors import DataError, UsageError
from zoedge.recipe.check import check
from zoedge.recipe.reading import read_recipe
from zoedge.recipe.sections import Data, Split
from zoedge.scoring.rows.files import read_rows
from zoedge.scoring.rows.formats import (
    CHAT_FORMATS,
    FORMAT_KEYS,
    make_message,
    matching_formats,
    row_to_messages,
    rows_to_chats,
    select_format,
)
from zoedge.scoring.rows.row import Row
from zoedge.scoring.rows.sets import load_rows, load_sets
from zoedge.scoring.tasks.chat import TEMPLATE_FOLDER, Chat, render_chats
from zoedge.scoring.tasks.lm import Lm

TALK = [
    make_message("user", "Hi"),
    make_message("assistant", "Hello"),
    make_message("user", "Bye"),
    make_message("assistant", "Ciao"),
]
SYSTEM = make_message("system", "Be kind.")
ALPACA = {"instruction": "Add.", "input": "1 2", "output": "3"}


def shared(chat: list[dict[str, str]]) -> list[dict[str, str]]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[m["role"]], "value": m["content"]} for m in chat]


def put(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    return put(path, "".join(json.dumps(row) + "\n" for row in rows))


def said_of(call: Callable[[], Any]) -> str:
    with pytest.raises(DataError) as e:
        call()
    return str(e.value)


# -- one row of each format, as the tokens that are trained on

CHATML = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nCiao<|im_end|>"
KIND = "<|im_start|>system\nBe kind.<|im_end|>\n"
EXACT: dict[str, tuple[dict[str, Any], str, list[str]]] = {  # row, whole text, what is scored
    "messages": ({"messages": TALK}, CHATML, ["Hello<|im_end|>", "Ciao<|im_end|>"]),
    "messages with a system": ({"messages": [SYSTEM, *TALK]}, KIND + CHATML, ["Hello<|im_end|>", "Ciao<|im_end|>"]),
    "messages and a system beside": (
        {"messages": TALK, "system": "Be kind."}, KIND + CHATML, ["Hello<|im_end|>", "Ciao<|im_end|>"],
    ),
    "content in parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}, *TALK[1:]]},
        CHATML, ["Hello<|im_end|>", "Ciao<|im_end|>"],
    ),
    "sharegpt": ({"id": 7, "conversations": shared(TALK)}, CHATML, ["Hello<|im_end|>", "Ciao<|im_end|>"]),
    "sharegpt with a system": (
        {"conversations": shared([SYSTEM, *TALK]), "tools": ""}, KIND + CHATML, ["Hello<|im_end|>", "Ciao<|im_end|>"],
    ),
    "conversations in OpenAI's words": ({"conversations": TALK}, CHATML, ["Hello<|im_end|>", "Ciao<|im_end|>"]),
    "messages in ShareGPT's words": ({"messages": shared(TALK)}, CHATML, ["Hello<|im_end|>", "Ciao<|im_end|>"]),
    "alpaca": (
        ALPACA, "<|im_start|>user\nAdd.\n\n1 2<|im_end|>\n<|im_start|>assistant\n3<|im_end|>", ["3<|im_end|>"],
    ),
    "alpaca without an input": (
        {"instruction": "Go.", "input": "", "output": "3"},
        "<|im_start|>user\nGo.<|im_end|>\n<|im_start|>assistant\n3<|im_end|>", ["3<|im_end|>"],
    ),
    "alpaca with a history and a system": (
        {"instruction": "Bye", "output": "Ciao", "history": [["Hi", "Hello"]], "system": "Be kind."}, KIND + CHATML,
        ["Hello<|im_end|>", "Ciao<|im_end|>"],
    ),
    "completions": (
        {"prompt": "Hi", "completion": "Hello"},
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>", ["Hello<|im_end|>"],
    ),
    "completions with all that may stand beside": (
        {"prompt": "Bye", "completion": "Ciao", "system_prompt": "Be kind.", "history": [["Hi", "Hello"]]}, KIND + CHATML,
        ["Hello<|im_end|>", "Ciao<|im_end|>"],
    ),
    "a history before messages": (
        {"messages": TALK[2:], "history": [["Hi", "Hello"]], "system": "Be kind."}, KIND + CHATML, ["Hello<|im_end|>", "Ciao<|im_end|>"],
    ),
    "completions of turns": ({"prompt": TALK[:3], "completion": TALK[3:]}, CHATML, ["Ciao<|im_end|>"]),
    "completions of turns and a text": ({"prompt": TALK[:3], "completion": "Ciao"}, CHATML, ["Ciao<|im_end|>"]),
    "an answer of weight 0": (
        {"messages": [SYSTEM | {"role": "developer"}, TALK[0], TALK[1] | {"weight": 0}, *TALK[2:]]}, KIND + CHATML, ["Ciao<|im_end|>"],
    ),
    "an answer that is not to train": (
        {"conversations": [*shared(TALK[:3]), shared(TALK[3:])[0] | {"train": False}], "label": True}, CHATML.partition("\n<|im_start|>user\nBye")[0],
        ["Hello<|im_end|>"],
    ),
    "an input of 0": (
        {"instruction": "Add 1.", "input": 0, "output": 1}, "<|im_start|>user\nAdd 1.\n\n0<|im_end|>\n<|im_start|>assistant\n1<|im_end|>", ["1<|im_end|>"],
    ),
    "an input of false": (
        {"instruction": "Not.", "input": False, "output": True}, "<|im_start|>user\nNot.\n\nfalse<|im_end|>\n<|im_start|>assistant\ntrue<|im_end|>", ["true<|im_end|>"],
    ),
    "segments": (
        {"segments": [{"label": False, "text": "Q: a film?\nA:"}, {"label": True, "text": " great"}, {"label": False, "text": "\n"}, {"label": True, "text": "fun"}]},
        "Q: a film?\nA: great\nfun", [" great", "fun"],
    ),
    "two questions in a row": (
        {"messages": [TALK[0], TALK[2], TALK[3]]},
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nCiao<|im_end|>",
        ["Ciao<|im_end|>"],
    ),
    "a question left open": (
        {"messages": [*TALK[:2], TALK[2]]},
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>", ["Hello<|im_end|>"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_what_a_row_becomes(name: str, tokenizer: Any) -> None:
    fields, whole, answers = EXACT[name]
    examples, _ = Chat("chatml").encode([Row("f:1", fields)], tokenizer, 400, "error")
    ids = [*examples.tokens[0], examples.targets[0][-1]]
    assert ids == tokenizer(whole, add_special_tokens=False).input_ids
    assert tokenizer.decode(examples.targets[0]) == "".join(answers)
    assert examples.targets[0] == [ids[i + 1] for i in examples.rows[0]]


def test_every_format_has_its_row() -> None:
    assert {kind for fields, *_ in EXACT.values() for kind in matching_formats(Row("f:1", fields))} == set(CHAT_FORMATS)


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".json"])
def test_plain_text_becomes_its_tokens(ending: str, tmp_path: Path, tokenizer: Any) -> None:
    texts = ["the film was great", "a dull story"]
    raw = "\r\n\n".join(texts) if ending == ".txt" else [{"text": t} for t in texts]
    path = lines(tmp_path / "a.jsonl", raw) if ending == ".jsonl" else put(tmp_path / f"a{ending}", raw)  # type: ignore[arg-type]
    rows, faults = read_rows(path, path.name)
    assert [row.fields for row in rows] == [{"text": t} for t in texts] and not faults
    examples, _ = Lm().encode(rows, tokenizer, 64, "error")
    for i, text in enumerate(texts):
        ids = tokenizer(text).input_ids
        assert [*examples.tokens[i], examples.targets[i][-1]] == ids and examples.targets[i] == ids[1:]


# -- rows that are refused, each with its line


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"messages": TALK, "tools": [3]}, 'field "tools": not a list of functions with a name each.'),
        ({"messages": [TALK[0], {"role": "assistant", "content": None, "tool_calls": [{}]}]}, "messages, turn 2: tool_calls: not a list of calls with"),
        ({"conversations": [*shared(TALK), {"from": "function_call", "value": "f(1)"}]}, "conversations, turn 5: tool_calls: not a list of calls with"),
        (ALPACA | {"images": ["a.png"]}, "it has images, and only texts are trained on. Leave the row out."),
        ({"messages": [TALK[0] | {"images": ["a.png"]}, TALK[1]]}, "messages, turn 1: it has images, and only texts are trained on."),
        ({"prompt": "a", "completion": "b", "label": False}, "label is false: a bad answer, which must not be trained on. Leave such rows out: data.without: {label: 'false'}."),
        ({"prompt": "a", "completion": "b", "label": "False"}, "label is false: a bad answer, which must not be trained on. Leave such rows out: data.without: {label: 'False'}."),
        ({"conversations": shared(TALK[:1]), "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}}, "it has chosen, a preference, and answers are trained on."),
        ({"prompt": "a", "completion": "b", "input": 0}, "it has input beside prompt and completion. Add data.fields: {instruction: prompt, output: completion}"),
        (ALPACA | {"input": {"a": 1}}, "field \"input\": {'a': 1} is not a text"),
        (ALPACA | {"system": "a", "system_prompt": "b"}, "it has system and system_prompt. Keep one."),
        ({"prompt": [TALK[0]], "completion": [TALK[0]]}, 'field "completion": a turn of it is not the assistant\'s.'),
        ({"prompt": 3, "completion": [TALK[1]]}, 'field "prompt": not a list of {role, content}.'),
        ({"segments": [{"text": "a"}]}, 'field "segments": not a list of {text, label}, where label is true or false.'),
        ({"segments": [{"text": "a", "label": False}]}, "no segment with a text has the label true."),
        ({"messages": [TALK[0], TALK[1] | {"reasoning_content": 3}]}, "messages, turn 2: reasoning is a text, of an answer"),
        ({"messages": [TALK[0] | {"thinking": "hm"}, TALK[1]]}, "messages, turn 1: reasoning is a text, of an answer"),
        ({"messages": [TALK[0], TALK[1] | {"weight": 0.5}]}, "messages, turn 2: weight is 0.5; an answer is trained on (1, true) or not (0, false)."),
        ({"messages": [*TALK, SYSTEM]}, "a system message must stand first."),
        ({"messages": [SYSTEM, *TALK], "system": "Be"}, "a system message must stand first. The row has two."),
        ({"messages": TALK[1:]}, "the assistant speaks first, so that nothing asks for its answer."),
        ({"messages": [SYSTEM, *TALK[1:]]}, "the assistant speaks first, so that nothing asks for its answer."),
        ({"messages": [SYSTEM, TALK[0]]}, "no answer of the assistant's."),
        ({"messages": [TALK[0], make_message("assistant", "")]}, "messages, turn 2: content is missing, empty or not a text."),
        ({"conversations": [{"from": "human", "value": "\n"}]}, "conversations, turn 1: value is missing, empty or not"),
        ({"conversations": [{"from": "user1", "value": "a"}]}, 'conversations, turn 1: from "user1" is not one of human, user,'),
        ({"conversations": [{"role": "human", "value": "a"}]}, 'conversations, turn 1: role "human" is not one of system,'),
        ({"messages": [TALK[0], TALK[1] | {"weight": 0}]}, "every answer is marked not to be trained on (weight, train)."),
        ({"messages": [TALK[0], TALK[1] | {"train": False}]}, "every answer is marked not to be trained on (weight, train)."),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 'messages, turn 1: a part of its content is "ima'),
        (ALPACA | {"history": [["a"]]}, 'field "history": not a list of [question, answer].'),
        (ALPACA | {"history": [["a", " "]]}, "history, round 1: a text is missing, empty or not a text."),
        (ALPACA | {"system": ["a"]}, "field \"system\": ['a'] is not a text"),
        ({"messages": TALK, "prompt": "a", "completion": "b"},
         "messages and completions at once. Say which: data.format: messages | completions."),
    ],
)  # fmt: skip
def test_a_row_that_is_refused(fields: dict[str, Any], sentence: str) -> None:
    assert said_of(lambda: row_to_messages(Row("f:7", fields))).startswith(f"f:7: {sentence}")


def test_two_questions_in_a_row_are_for_the_template_to_refuse(tokenizer: Any) -> None:
    rows = [Row("f:7", {"messages": [TALK[0], TALK[2], TALK[3]]})]
    assert said_of(lambda: Chat("llama2").encode(rows, tokenizer, 400, "error")) == (
        "f:7: the chat template: user and assistant must take turns, the user first."
    )


def test_every_row_is_looked_at_not_the_first_alone() -> None:
    rows = [Row(f"f:{i}", {"messages": TALK[:2]} if i % 2 else ALPACA) for i in range(1, 5)]
    assert [len(chat) for chat in rows_to_chats(rows)] == [2] * 4 and rows_to_chats(rows)[1][0][
        "content"
    ] == "Add.\n\n1 2"
    assert said_of(lambda: rows_to_chats([*rows, Row("f:5", {"text": "a"})])).startswith(
        "f:5: no conversation: messages, con"
    )


def test_the_fourth_likely_mistake_word_by_word() -> None:
    rows = [Row(f"data/train.jsonl:{i}", {"question": "a", "answer": "b"}) for i in range(1, 5001)]
    assert said_of(lambda: rows_to_chats(rows)) == (
        "data/train.jsonl: cannot tell the format. Keys: question, answer (5,000/5,000 rows). Known: messages | conversations "
        "| instruction,output | prompt,completion | segments | text. Add data.fields: {prompt: question, completion: answer}."
    )
    dolly = [Row("f:1", {"instruction": "a", "context": "b", "response": "c", "category": "d"})]
    assert said_of(lambda: rows_to_chats(dolly)).endswith("Add data.fields: {input: context, output: response}.")
    bad = [Row("f:1", {"prompt": "a", "chosen": "b", "rejected": "c"})]
    assert said_of(lambda: rows_to_chats(bad)) == (
        "f: its rows are preferences (chosen, rejected), and answers are trained on. data.fields: {completion: chosen} trains on "
        "the chosen ones alone."
    )
    odd = [Row("f:1", {"n": 1, "b": "x"}), Row("f:2", {"b": "y"})]
    assert "Keys: n, b (1/2 rows)." in said_of(lambda: rows_to_chats(odd))
    assert said_of(lambda: rows_to_chats(odd)).endswith("Add data.fields: {prompt: b, completion: ...}.")


def test_its_way_out_leads_out(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", [{"question": "Hi", "answer": "Hello"}])
    data = Data(train=str(tmp_path / "a.jsonl"), fields={"prompt": "question", "completion": "answer"})
    rows, _, _ = load_sets(data, [])
    assert rows_to_chats(rows) == [TALK[:2]]


def test_the_sixth_likely_mistake(tokenizer: Any) -> None:
    rows = [
        Row(f"f:{i}", {"prompt": "Hi", "completion": "great film " * n}) for i, n in ((1, 1), (2, 40), (3, 1), (4, 50))
    ]
    assert said_of(lambda: Chat("plain").encode(rows, tokenizer, 32, "truncate")).startswith(
        "2 of 4 samples (50.0 %) keep nothing of what was asked after cutting to 32 tokens: their last answer alone fills them "
        "(first f:2). Raise data.max_length (p99 = "
    )
    examples, counts = Chat("plain").encode(rows, tokenizer, 32, "drop")
    assert len(examples) == 2 and counts == {"truncated": 0, "dropped": 2}


def test_a_task_that_does_not_take_the_rows_names_the_one_that_does(tokenizer: Any) -> None:
    from zoedge.scoring.tasks.classify import Classify

    rows, texts = [Row("f:1", {"messages": TALK})], [Row("f:1", {"text": "a"})]
    assert said_of(lambda: Classify().encode(rows, tokenizer, 64, "error")) == (
        "f: no row has text (task.prompt), label (task.label): its rows are conversations (messages). Set task: chat."
    )
    assert said_of(lambda: Lm().encode(rows, tokenizer, 64, "error")).endswith(
        "conversations (messages). Set task: chat."
    )
    assert said_of(lambda: Chat("plain").encode(texts, tokenizer, 64, "error")) == (
        "f: plain text ({text}), and the task is chat. Set task: lm."
    )
    assert said_of(lambda: Classify().encode(texts, tokenizer, 64, "error")) == (
        "f: its rows are plain text, without label (task.label). Set task: lm."
    )


# -- data.format


def test_a_format_that_is_said() -> None:
    rows = [Row("f:1", {"messages": TALK, "system": "Be kind.", "prompt": "a", "completion": "b", "id": 1})]
    assert row_to_messages(select_format(rows, "completions")[0]) == [
        SYSTEM,
        make_message("user", "a"),
        make_message("assistant", "b"),
    ]
    assert row_to_messages(select_format(rows, "messages")[0]) == [SYSTEM, *TALK]
    assert select_format(rows, "auto") is rows and select_format(rows, "text") is rows
    assert said_of(lambda: select_format([*rows, Row("f:2", {"text": "a"})], "messages")) == (
        "f:2: not messages: no messages (data.format). It has: text."
    )


BASE = {"version": 1, "model": {"source": "x"}, "data": {"train": "x.jsonl"}}


def test_the_recipes_word_for_it() -> None:
    from zoedge.run.identity import recipe_digest

    for kind in FORMAT_KEYS:
        task = "lm" if kind == "text" else "chat"
        made = check(BASE | {"data": {"train": "x.jsonl", "format": kind}, "task": task}, {}, "a")
        assert made.data.format == kind == made.resolved()["data"]["format"]
        with pytest.raises(UsageError, match=f"data.format: {kind} goes with task: {task}, not classify"):
            check(BASE | {"data": {"train": "x.jsonl", "format": kind}}, {}, "a")
    auto = check(BASE | {"data": {"train": "x.jsonl", "format": "auto"}}, {}, "a")
    assert "format" not in auto.resolved()["data"] and auto == check(BASE, {}, "a")
    assert recipe_digest(auto) == recipe_digest(check(BASE, {}, "a"))
    with pytest.raises(UsageError, match=r"data\.format: 'alpacca' is not .* - did you mean 'alpaca'\?"):
        check(BASE | {"data": {"train": "x.jsonl", "format": "alpacca"}}, {}, "a")


def test_the_quickstarts_identity_is_what_it_was() -> None:
    """Its log's fingerprint, in README, is over this recipe."""
    assert "format" not in read_recipe("quickstart").resolved()["data"]


# -- JSON arrays and texts


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ('[{"a": 1}, 5]', "a.json:item 2: an item must be an object, {...} (1 bad line of 2; data.skip_bad_lines=true"),
        ('[{"a": 1},\n {"a": NaN}]', "a.json:item 2: not valid JSON: NaN is not JSON"),
        ('[{"a": 1}, {"a": 1, "a": 2}]', 'a.json:item 2: not valid JSON: the key "a" stands twice'),
        ('[{"a": 1}, {"a": "\\ud800"}]', "a.json:item 2: half a character"),
        ('[{"a": 1}, {"a": ' + "9" * 5000 + "}]", "a.json:item 2: not valid JSON: a number of 5,000 digits"),
        ('[{"a": 1}, {"a": "' + "x" * (1 << 20) + '"}]', "a.json:item 2: longer than 1 MiB"),
        ('[{"a": 1}, {"a": ' + "[" * 20 + "]" * 20 + "}]", "a.json:item 2: nested more than 16 deep"),
        ('[{"a": 1},\n{"a": ' + "[" * 90_000, "a.json:2: item 2: nested more than 16 deep."),
        ('[\n{"a": 1},\n{"a" 1}]', "a.json:3: item 2: not valid JSON: expected ':' delimiter at column 6."),
        ('[{"a": 1},\n]', "a.json:2: item 2: not valid JSON: expected value at column 1."),
        ('[{"a": 1}\n{"a": 1}]', "a.json:2: not valid JSON: expected ',' or ']' after item 1."),
        ('[{"a": 1}', "a.json:1: not valid JSON: expected ',' or ']' after item 1."),
        ('[{"a": 1}]\n[{"a": 1}]', "a.json:1: not valid JSON: something follows the array."),
        ("[]", "a.json: no rows: the file is empty."),
        (b'[{"a": 1},\n{"a": "\xff"}]', "a.json:2: not UTF-8."),
    ],
)  # fmt: skip
def test_a_fault_in_an_array(raw: str | bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    assert said_of(lambda: read_rows(tmp_path / "a.json", "a.json")).startswith(sentence)


def test_an_array_is_the_same_rows_as_lines(tmp_path: Path) -> None:
    rows = [{"a": 'x, ] "y', "b": [1, {"c": None}]}, {"a": "é\n"}]
    for name, raw in {
        "a": json.dumps(rows),
        "b": "\ufeff " + json.dumps(rows, indent=2, ensure_ascii=False) + "\n",
    }.items():
        found, _ = read_rows(put(tmp_path / f"{name}.json", raw), f"{name}.json")
        assert found == [Row(f"{name}.json:item {i}", row) for i, row in enumerate(rows, 1)]
    found, _ = read_rows(lines(tmp_path / "c.json", rows), "c.json")
    assert [row.fields for row in found] == rows and found[1].where == "c.json:2"
    skipped, faults = read_rows(put(tmp_path / "d.json", '[{"a": 1}, 2, {"a": 3}]'), "d.json", skip_bad=True)
    assert [row.where for row in skipped] == ["d.json:item 1", "d.json:item 3"] and len(faults) == 1


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"a\n\xff\n", "a.txt:2: not UTF-8 (byte 0 of the line) (1 bad line of 2; data.skip_bad_lines"),
        (b"a\nb\0c\n", "a.txt:2: a NUL character: is it a text?"),
        (b"a\n" + b"x" * (1 << 21) + b"\nb\n", "a.txt:2: longer than 1 MiB"),
        (b" \n\n", "a.txt: no rows: the file is empty."),
    ],
)
def test_a_fault_in_a_text(raw: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(raw)
    assert said_of(lambda: read_rows(tmp_path / "a.txt", "a.txt")).startswith(sentence)


# -- folders


def test_an_mlx_lm_folder_brings_its_own_valid_and_test(tmp_path: Path) -> None:
    for i, word in enumerate(("train", "valid", "test")):
        lines(tmp_path / "d" / f"{word}.jsonl", [{"text": f"{word} {n}"} for n in range(4 + i)])
    folder = str(tmp_path / "d")
    rows, parts, _ = load_sets(Data(train=folder), ["text"])
    assert len(rows) == 4 and {k: len(v) for k, v in parts.items()} == {"test": 6, "valid": 5}
    assert rows[0].where.startswith(f"{folder}/train.jsonl:")
    rows, parts, _ = load_sets(Data(train=folder, valid=Split(split=1), test=f"{folder}/valid.jsonl"), ["text"])
    assert len(rows) == 3 and {k: len(v) for k, v in parts.items()} == {"test": 5, "valid": 1}  # the recipe comes first
    assert len(load_sets(Data(train=f"{folder}/train.jsonl"), ["text"])[1]) == 0
    put(tmp_path / "d" / "valid.json", [{"text": "a"}])
    assert said_of(lambda: load_sets(Data(train=folder), ["text"])) == (
        f"data.valid: {folder} has valid.jsonl and valid.json. Name one of them."
    )


INFO = {
    "identity": {"file_name": "identity.json"},
    "talks": {
        "file_name": "talks.jsonl", "formatting": "sharegpt",
        "columns": {"messages": "dialogue", "system": "sys", "tools": "functions"},
        "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "customer", "assistant_tag": "agent"},
    },
    "renamed": {"file_name": "sub/qa.json", "columns": {
        "prompt": "q", "query": "ctx", "response": "a", "history": "before", "system": "sys"}},
    "openai": {"file_name": "openai.json", "formatting": "openai"},
    "corpus": {"file_name": "corpus.json", "columns": {"prompt": "text"}},
    "far": {"hf_hub_url": "org/set"}, "ranked": {"file_name": "identity.json", "ranking": True},
    "seen": {"file_name": "identity.json", "columns": {"images": "img"}}, "gone": {"file_name": "gone.json"},
    "odd": {"file_name": "identity.json", "formatting": "vicuna"},
}  # fmt: skip


@pytest.fixture
def factory(tmp_path: Path) -> str:
    """A data folder as LLaMA-Factory has it."""
    root = tmp_path / "data"
    put(root / "dataset_info.json", INFO)
    put(root / "identity.json", [ALPACA, {"instruction": "Hi", "input": "", "output": "Hello"}])
    talk = [{"who": "customer", "what": "Hi"}, {"who": "agent", "what": "Hello"}]
    lines(root / "talks.jsonl", [{"dialogue": talk, "sys": "Be kind.", "functions": ""}])
    put(root / "sub" / "qa.json", [{"q": "Bye", "ctx": "", "a": "Ciao", "before": [["Hi", "Hello"]], "sys": ""}])
    put(root / "openai.json", [{"messages": TALK[:2]}])
    put(root / "corpus.json", [{"text": "a film"}])
    return str(root)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("identity", [[make_message("user", "Add.\n\n1 2"), make_message("assistant", "3")], TALK[:2]]),
        ("talks", [[SYSTEM, *TALK[:2]]]),
        ("renamed", [TALK]),
        ("openai", [TALK[:2]]),
        ("talks,openai", [[SYSTEM, *TALK[:2]], TALK[:2]]),
    ],
)
def test_llama_factorys_folders(factory: str, name: str, wanted: list[Any]) -> None:
    rows, _ = load_rows(f"{factory}:{name}", "data.train", Data(train="x"))
    assert rows_to_chats(rows) == wanted and rows[0].where.startswith(f"{factory}/")


def test_llama_factorys_pre_training_sets_are_texts(factory: str, tokenizer: Any) -> None:
    rows, _ = load_rows(f"{factory}:corpus", "data.train", Data(train="x"))
    assert rows == [Row(f"{factory}/corpus.json:item 1", {"text": "a film"})]
    assert len(Lm().encode(rows, tokenizer, 64, "error")[0]) == 1


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "{0}/dataset_info.json describes: identity, talks, renamed, openai, corpus, ranked, seen, gone, odd. Name one (or "
             "several): {0}:identity."),
        (":identty", "{0}/dataset_info.json: no data set 'identty' - did you mean 'identity'?"),
        (":far", "{0}/dataset_info.json: far: lies elsewhere (hf_hub_url). Put its file here, or name a hub id, ORG/SET, in data"),
        (":ranked", "{0}/dataset_info.json: ranked: rankings: only texts and answers are trained on."),
        (":seen", "{0}/dataset_info.json: seen: images: only texts and answers are trained on."),
        (":gone", "{0}/dataset_info.json: gone: no file 'gone.json' in {0}."),
        (":odd", "{0}/dataset_info.json: odd: formatting 'vicuna' is not alpaca, sharegpt or openai."),
    ],
)  # fmt: skip
def test_what_of_a_data_folder_is_refused(factory: str, name: str, sentence: str) -> None:
    assert said_of(lambda: load_rows(factory + name, "data.train", Data(train="x"))).startswith(
        sentence.format(factory)
    )


def test_a_tool_call_and_a_lost_column_in_a_data_folder(factory: str) -> None:
    call = {"who": "function_call", "what": "f()"}
    lines(Path(factory) / "talks.jsonl", [{"dialogue": [{"who": "customer", "what": "Hi"}, call]}, {"dialog": []}])
    said = said_of(lambda: load_rows(f"{factory}:talks", "data.train", Data(train="x")))
    assert said == f'{factory}/talks.jsonl:2: field "dialogue": missing. It has: dialog.'
    lines(Path(factory) / "talks.jsonl", [{"dialogue": [{"who": "customer", "what": "Hi"}, call]}])
    rows, _ = load_rows(f"{factory}:talks", "data.train", Data(train="x"))
    assert said_of(lambda: rows_to_chats(rows)).startswith(
        f"{factory}/talks.jsonl:1: messages, turn 2: tool_calls: not a list"
    )
    (Path(factory) / "dataset_info.json").write_text('{"a": 1, "a": 2}')
    assert 'dataset_info.json: not valid JSON: the key "a" stands twice.' in said_of(
        lambda: load_rows(f"{factory}:a", "data.train", Data(train="x"))
    )


# -- a template of one's own


def test_a_template_file(tmp_path: Path, tokenizer: Any) -> None:
    template = "{% for m in messages %}{{ '<' if m.role == 'user' else '>' }}{{ m.content }}{% endfor %}"
    path = put(tmp_path / "own.jinja", template + "{% if add_generation_prompt %}>{% endif %}")
    examples, _ = Chat(str(path)).encode([Row("f:1", {"messages": TALK})], tokenizer, 64, "error")
    ids = [*examples.tokens[0], examples.targets[0][-1]]
    assert tokenizer.decode(ids) == "<Hi>Hello<Bye>Ciao" and tokenizer.decode(examples.targets[0]) == "HelloCiao"
    assert (
        said_of(lambda: Chat("no.jinja").source(tokenizer))
        == "task.format: no.jinja: cannot be read: No such file or directory."
    )
    path.write_bytes(b"\xff")
    assert said_of(lambda: Chat(str(path)).source(tokenizer)) == f"task.format: {path}: not UTF-8 (byte 0)."
    path.write_bytes(b"x" * ((1 << 20) + 1))
    assert said_of(lambda: Chat(str(path)).source(tokenizer)).endswith("larger than 1 MiB: not a template.")
    with pytest.raises(
        ValueError, match=r"^format: 'chatmll' is not own or chatml or llama2 or plain or FILE.jinja - did you"
    ):
        Chat("chatmll")


# -- as a user types it


def test_a_folder_of_chats_trains(
    finished: Path, tmp_path: Path, monkeypatch: Any, zoedge: Callable[..., Done]
) -> None:
    """mlx-lm's folder, LLaMA-Factory's and a .txt file, each by one command."""
    import shutil

    shutil.copytree(finished / "model", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "my.yaml", (finished / "my.yaml").read_text().replace(", valid: {split: 10}", ""))
    rows = [{"prompt": f"film {i}", "completion": "fun bright"} for i in range(12)]
    lines(tmp_path / "chats" / "train.jsonl", rows)
    lines(tmp_path / "chats" / "valid.jsonl", rows[:3])
    put(tmp_path / "data" / "dataset_info.json", {"mine": {"file_name": "mine.json"}})
    put(tmp_path / "data" / "mine.json", [{"instruction": r["prompt"], "output": "dull"} for r in rows])
    put(tmp_path / "a.txt", "\n".join(f"a dull film {i}" for i in range(12)))
    for name, train, task in (
        ("one", "chats", "{name: chat, format: plain}"), ("two", "data", "{name: chat, format: plain}"), ("three", "a.txt", "lm"),
    ):  # fmt: skip
        done = zoedge("finetune", "my.yaml", f"name={name}", f"data.train={train}", f"task={task}", "--plain")
        assert done.code == 0, done.err
        assert ("rows: 12 train, 3 valid" in done.out) == (name == "one")
    done = zoedge("finetune", "my.yaml", "name=four", "data.train=chats")
    assert done.code == 3 and "its rows are conversations (completions). Set task: chat." in done.err


# -- the page about it


def test_the_page_says_what_rows_become() -> None:
    """docs/data.md: its rows are read as it says, and it has every format and every kind of file."""
    from zoedge.scoring.sources.resolve import ROW_SUFFIXES

    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    table = {
        kind: (row, told)
        for kind, row, told in re.findall(r"^\| `(\w+)`.*? \| `(\{.*?\})` \| (.*?) ?\|$", page, re.MULTILINE)
    }
    assert table.keys() == FORMAT_KEYS.keys() and all(f"`rows{e}`" in page or f"book{e}" in page for e in ROW_SUFFIXES)
    for kind in CHAT_FORMATS:
        row, told = table[kind]
        assert matching_formats(Row("f:1", json.loads(row))) == [kind]
        if kind == "segments":
            continue  # its text is above, in EXACT
        chat = row_to_messages(Row("f:1", json.loads(row)))
        assert ", ".join(f"{m['role']}: {m['content']}" for m in chat).replace("\n", "⏎") == told
    block = page.split("```\n")[1].rstrip("\n")
    source = (TEMPLATE_FOLDER / "chatml.jinja").read_text()
    words = SimpleNamespace(bos_token=None, eos_token=None, pad_token=None, unk_token=None)
    (found,) = render_chats(source, [TALK[:2]], words)[0]["texts"]
    assert found["text"].rstrip("\n") == block and [found["text"][a:b] for a, b in found["answers"]] == [
        "Hello<|im_end|>"
    ]
