"""Chat templates as published models have them: what of a conversation is scored, in which text, and what is refused."""

# ruff: noqa: E501 - a template a line
from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from zoedge.errors import DataError
from zoedge.recipe.sections import Data, Split
from zoedge.scoring.rows.row import Row
from zoedge.scoring.rows.sets import load_sets
from zoedge.scoring.tasks.chat import Chat
from zoedge.scoring.tasks.choose import Choose
from zoedge.scoring.tasks.classify import Classify
from zoedge.scoring.texts import load_datasets, readable_fields

QWEN3 = """{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}
{%- set think = m.reasoning_content or '' %}{%- set content = m.content %}
{%- if '</think>' in content %}{%- set think = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}
{%- if m.role == 'assistant' and loop.index0 > ns.last %}{{- '<think>\\n' + think + '\\n</think>\\n\\n' }}{% endif %}{{- content + '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""
PHI = "{% for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
R1 = "{{- bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ 'U:' + m.content }}{% elif m.role == 'assistant' %}{{ 'A:' + m.content.split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'A:<think>\\n' }}{% endif %}"
TOOLS = """{% if tools %}{{ 'T:' + (tools | tojson) + '\\n' }}{% endif %}{% for m in messages %}{{ m.role + ':' + m.content }}{% for c in m.tool_calls or [] %}{{ '[' + c.function.name + '(' + (c.function.arguments | tojson) + ')]' }}{% endfor %}{{ '|\\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"""


def talk(*texts: str) -> list[dict[str, Any]]:
    """Question and answer in turns."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def texts_of(tokenizer: Any, template: str, *rows: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Each text of the rows, and what is scored in it."""
    own = deepcopy(tokenizer)
    own.chat_template = template
    parts = Chat().render_rows([Row(f"f:{i}", row) for i, row in enumerate(rows, 1)], own)
    return [(part.text, [part.text[a:b] for a, b in part.answers]) for _, part in parts]


def said_of(tokenizer: Any, template: str, row: dict[str, Any]) -> str:
    with pytest.raises(DataError) as e:
        texts_of(tokenizer, template, row)
    return str(e.value)


def test_answers_that_are_written_otherwise_once_more_follow(tokenizer: Any) -> None:
    empty, user, assistant = "<think>\n\n</think>\n\n", "<|im_start|>user\n", "<|im_start|>assistant\n"
    one = f"{user}a<|im_end|>\n{assistant}{empty}b<|im_end|>\n"
    two = f"{user}a<|im_end|>\n{assistant}b<|im_end|>\n{user}c<|im_end|>\n{assistant}{empty}d<|im_end|>\n"
    assert texts_of(tokenizer, QWEN3, {"messages": talk("a", "b")}) == [(one, [f"{empty}b<|im_end|>"])]
    assert texts_of(tokenizer, QWEN3, {"messages": talk("a", "b", "c", "d")}) == [
        (one, [f"{empty}b<|im_end|>"]), (two, [f"{empty}d<|im_end|>"]),
    ]  # fmt: skip
    assert texts_of(tokenizer, PHI, {"messages": talk("a", "b", "c", "d")}) == [
        ("<|user|>\na<|end|>\n<|assistant|>\nb<|end|>\n</s>", ["b<|end|>\n</s>"]),
        (
            "<|user|>\na<|end|>\n<|assistant|>\nb<|end|>\n<|user|>\nc<|end|>\n<|assistant|>\nd<|end|>\n</s>",
            ["d<|end|>\n</s>"],
        ),
    ]
    assert texts_of(tokenizer, R1, {"messages": talk("a", "<b", "c", "d")}) == [
        ("<s>U:aA:<b</s>U:cA:d</s>", ["<b</s>", "d</s>"])
    ]
    marked = talk("a", "b", "c", "d")
    marked[1]["weight"] = 0
    assert texts_of(tokenizer, QWEN3, {"messages": marked}) == [(two, [f"{empty}d<|im_end|>"])]


def test_each_text_is_an_example(tokenizer: Any) -> None:
    own = deepcopy(tokenizer)
    own.chat_template = QWEN3
    rows = [Row("f:1", {"messages": talk("a", "b", "c", "d")}), Row("f:2", {"messages": talk("a", "b")})]
    examples, counts = Chat().encode(rows, own, 400, "error")
    assert examples.names == ["f:1", "f:1", "f:2"] and counts == {"truncated": 0, "dropped": 0}
    assert tokenizer.decode(examples.targets[1]).endswith("d<|im_end|>")
    with pytest.raises(DataError, match=r"^3 of 3 samples"):
        Chat().encode(rows, own, 10, "error")


def test_reasoning_is_trained_on_or_refused(tokenizer: Any) -> None:
    reasoned = talk("hi", "yo")
    reasoned[1]["reasoning_content"] = "They greet me."
    tagged = talk("hi", "<think>\nThey greet me.\n</think>\n\nyo")
    wanted = ["<think>\nThey greet me.\n</think>\n\nyo<|im_end|>"]
    assert [answers for _, answers in texts_of(tokenizer, QWEN3, {"messages": reasoned}, {"messages": tagged})] == [
        wanted
    ] * 2
    several = [*reasoned, *talk("c", "d")]  # an earlier answer's reasoning is no part of a later question
    assert texts_of(tokenizer, QWEN3, {"messages": several})[0][1] == wanted
    assert (
        texts_of(tokenizer, QWEN3, {"prompt": "hi", "completion": "yo", "thinking": "They greet me."})[0][1] == wanted
    )
    for key in ("reasoning_content", "thinking", "reasoning"):
        row = {"messages": [reasoned[0], {"role": "assistant", "content": "yo", key: "They greet me."}]}
        assert said_of(tokenizer, PHI, row) == (
            "f:1: the chat template: it leaves out the reasoning of turn 2, or a part of it, which would not be trained on. Take it "
            "out of the row, or set task.format to a template that writes it."
        )
    assert "leaves out the content of turn 2" in said_of(tokenizer, R1, {"messages": tagged})


def test_tools_are_the_templates(tokenizer: Any) -> None:
    function = {"name": "add", "description": "adds", "parameters": {}}
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    openai = {"tools": [{"type": "function", "function": function}], "messages": [
        *talk("1 + 1?"), {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "2", "tool_call_id": "1"}, {"role": "assistant", "content": "Two."},
    ]}  # fmt: skip
    import json

    factory = {"tools": json.dumps([function]), "conversations": [
        {"from": "human", "value": "1 + 1?"}, {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'}, {"from": "observation", "value": "2"}, {"from": "gpt", "value": "Two."},
    ]}  # fmt: skip
    for row in (openai, factory):
        ((text, answers),) = texts_of(tokenizer, TOOLS, row)
        assert answers == ['[add({"a": 1})]|', "Two.|"] and text.startswith("T:[{") and "tool:2|\n" in text
    assert "it leaves out the call of add of turn 2" in said_of(tokenizer, PHI, {"messages": openai["messages"]})
    assert said_of(tokenizer, PHI, {"messages": talk("a", "b"), "tools": openai["tools"]}) == (
        "f:1: the chat template: it leaves out the tool add. Take the tools out of the row, or set task.format to a template that "
        "writes them."
    )
    assert texts_of(tokenizer, PHI, {"messages": talk("a", "b"), "tools": "[]"}) == texts_of(
        tokenizer, PHI, {"messages": talk("a", "b")}
    )


# -- equal rows


def sets_of(tmp_path: Path, rows: list[dict[str, Any]], task: Any, **more: Any) -> Any:
    import json

    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_sets(Data(train=str(tmp_path / "a.jsonl"), **more), task.fields(), task.content, readable_fields(task))


def chat_row(kind: str, i: int, asked: str) -> dict[str, Any]:
    if kind == "ids":
        return {"id": i, "conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": "yo"}]}
    if kind == "ids of turns":
        return {"messages": [{"role": "user", "content": asked, "id": i}, {"role": "assistant", "content": "yo"}]}
    if kind == "an unread number":
        return {"prompt": asked, "completion": "yo", "score": i / 7}
    return [
        {"messages": talk(asked, "yo")}, {"instruction": asked, "output": "yo", "input": ""}, {"prompt": asked, "completion": "yo", "n": i},
        {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": "yo"}]},
    ][i // 10 % 4]  # fmt: skip


@pytest.mark.parametrize("kind", ["ids", "ids of turns", "an unread number", "four formats"])
def test_equal_conversations_are_on_one_side(kind: str, tmp_path: Path) -> None:
    task = Chat("chatml")
    rows = [chat_row(kind, i, f"hi {i % 10}") for i in range(60)]
    train, parts, counts = sets_of(tmp_path, rows, task, valid=Split(split=20), test=Split(split=6), limit=10)
    contents = [{task.content(row) for row in part} for part in (train, parts["valid"], parts["test"])]
    assert not contents[0] & contents[1] and not contents[0] & contents[2] and not contents[1] & contents[2]
    assert all(contents) and counts["also in valid"] == 0
    import json

    (tmp_path / "v.jsonl").write_text("".join(json.dumps(chat_row(kind, i + 1000, f"hi {i}")) + "\n" for i in range(3)))
    assert sets_of(tmp_path, rows, task, valid=str(tmp_path / "v.jsonl"))[2]["also in valid"] == 18


@pytest.mark.parametrize(("task", "row"), [
    (Classify(prompt="{text:lower,strip} It was"), lambda i: {"text": ("A film %d", " a FILM %d")[i // 10 % 2] % (i % 10), "label": "positive"}),
    (Choose(prompt="{text}", option=" {choice}", choices=["options"]), lambda i: {"text": f"q {i % 10}", "options": [["x", "y"], ["y", "x"]][i // 10 % 2], "label": "x"}),
])  # fmt: skip
def test_equal_prompts_are_on_one_side(task: Any, row: Any, tmp_path: Path) -> None:
    train, parts, _ = sets_of(tmp_path, [row(i) for i in range(40)], task, valid=Split(split=12))
    assert not {task.content(r) for r in train} & {task.content(r) for r in parts["valid"]} and parts["valid"]


def test_sets_without_equal_rows_are_split_as_before(tmp_path: Path) -> None:
    rows = [{"id": i, "messages": talk(f"hi {i}", "yo")} for i in range(40)]
    new = sets_of(tmp_path, rows, Chat(), valid=Split(split=12))
    old = load_sets(Data(train=str(tmp_path / "a.jsonl"), valid=Split(split=12)), [])
    assert new[:2] == old[:2]


def test_a_name_that_nothing_reads(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"^data\.fields\.txet: nothing reads a field of this name - did you mean 'text'\? "
    ):
        sets_of(tmp_path, [{"text": "a", "label": "b"}], Classify(), fields={"txet": "text"})
    with pytest.raises(DataError, match=r"^data\.fields\.answer: nothing reads a field of this name"):
        sets_of(tmp_path, [{"q": "a"}], Chat(), fields={"answer": "q"})
    sets_of(
        tmp_path,
        [{"q": "a", "y": "b"}, {"q": "c", "y": "d"}],
        Classify(),
        fields={"text": "q", "mine": "y"},
        without={"mine": "d"},
    )


# -- rows that cannot be trained on


def test_untrainable_rows_stop_or_are_dropped(tmp_path: Path, tokenizer: Any) -> None:
    import json

    rows = [
        {"messages": talk("a", "b")}, {"messages": talk("a")}, {"messages": talk("a", " ")}, {"messages": talk("a", "b")[1:]}, {"messages": talk("a", "b"), "images": ["x"]},
        {"messages": talk("c", "long " * 90)}, {"messages": talk("d", "e"), "tools": [{"name": "f"}]}, {"messages": talk("f", "g")},
    ]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Data(train=str(tmp_path / "a.jsonl"), on_untrainable="drop")
    found = load_datasets(data, Chat("plain"), 0, tokenizer, 64, len(tokenizer))
    assert sorted(name[-1] for name in found.train.names) == ["1", "8"]
    dropped = {what: n for what, n in found.counts["train"].items() if "cannot be trained on" in what}
    assert sum(dropped.values()) == 6 and any("a.jsonl:2: no answer of the assistant's." in what for what in dropped)
    with pytest.raises(DataError, match=r"a\.jsonl:2: no answer of the assistant's\."):
        load_datasets(
            data.model_copy(update={"on_untrainable": "stop"}), Chat("plain"), 0, tokenizer, 64, len(tokenizer)
        )
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[1]) + "\n")
    with pytest.raises(DataError, match=r"a\.jsonl:1: no answer"):
        load_datasets(data, Chat("plain"), 0, tokenizer, 64, len(tokenizer))
    labels = [
        {"text": "a film", "label": "positive"},
        {"text": "", "label": "positive"},
        {"text": "b", "label": "?"},
        {"text": "c", "label": "negative"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labels))
    assert len(load_datasets(data, Classify(), 0, tokenizer, 64, len(tokenizer)).train) == 2


# -- which candidate a label means


def chosen(label: Any, choices: Any, tokenizer: Any, *others: tuple[Any, Any]) -> Any:
    """The text of the right candidate, of the first row, or the sentence."""
    task = Choose(prompt="Q: {q}", option=" {choice}", choices=["options"], label="answer")
    rows = [
        Row(f"f:{i}", {"q": "a film", "options": o, "answer": a})
        for i, (a, o) in enumerate([(label, choices), *others], 1)
    ]
    try:
        examples, _ = task.encode(rows, tokenizer, 90, "error")
    except DataError as e:
        return str(e)
    return tokenizer.decode(examples.targets[0]).strip()


MMLU = ["8", "2", "24", "120"]


@pytest.mark.parametrize(("label", "choices", "wanted"), [
    (2, MMLU, "24"), (2.0, MMLU, "24"), ("120", MMLU, "120"), (["2"], MMLU, "2"), ([2], MMLU, "2"), (0, ["a", "a", "b"], "a"), (2, ["a", "a", "b"], "b"), ("2", ["x", "y", "z"], "z"),
    ("B", ["x", "y"], "y"), ("b", ["x", "y"], "y"), ("(B)", ["x", "y"], "y"), ("A", ["A", "B"], "A"), ("D", {"text": ["w", "x", "y", "z"], "label": ["A", "B", "C", "D"]}, "z"),
    ("1", {"text": ["w", "x"], "label": ["1", "2"]}, "w"), (1, {"text": ["w", "x"], "label": ["1", "2"]}, "w"), ("2", [{"label": "1", "text": "w"}, {"label": "2", "text": "x"}], "x"),
    ("B", {"A": "w", "B": "x"}, "x"), (1, {"text": ["w", "x"]}, "x"), (1, [7, 5], "5"), (7, [7, 5], "7"),
])  # fmt: skip
def test_which_candidate_a_label_means(label: Any, choices: Any, wanted: str, tokenizer: Any) -> None:
    assert chosen(label, choices, tokenizer) == wanted


def test_a_label_that_means_two_candidates(tokenizer: Any) -> None:
    both = 'f:1: "2" (answer) is candidate 3 by its number, from 0 and candidate 2 by its text. If it is a text, write a list, ["2"];'
    assert chosen("2", MMLU, tokenizer).startswith(both)
    assert chosen(2, [8, 2, 24, 120], tokenizer).startswith(both)
    assert chosen("2", MMLU, tokenizer, ("120", MMLU)) == "2", "the other rows' labels are texts"
    assert chosen("2", MMLU, tokenizer, ("0", MMLU)) == "24", "the other rows' labels are numbers"
    assert chosen("2", MMLU, tokenizer, ("0", MMLU), ("120", MMLU)).startswith(both)
    assert chosen("B", ["B", "A"], tokenizer).startswith(
        'f:1: "B" (answer) is candidate 1 by its text and candidate 2 by its letter.'
    )
    assert chosen("B", ["B", "A"], tokenizer, ("C", ["x", "y", "z"])) == "A"
    one = "Numbers count from 0. If these labels count from 1, take 1 off each: jq -c '.answer |= (tonumber - 1)' OLD.jsonl > NEW.jsonl"
    for label in (2, "2"):
        assert (
            chosen(1, ["x", "y"], tokenizer, (label, ["x", "y"]))
            == f'f:2: "2" (answer) is not a candidate: x, y. {one}'
        )
    assert chosen(-1, ["x", "y"], tokenizer) == 'f:1: "-1" (answer) is not a candidate: x, y.'
