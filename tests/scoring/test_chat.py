"""Conversations: the four kinds of rows, the exact tokens that are scored, and templates that misbehave."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from zoedge.errors import DataError
from zoedge.scoring.rows.formats import make_message as turn
from zoedge.scoring.rows.formats import row_to_messages
from zoedge.scoring.rows.row import Row
from zoedge.scoring.tasks import chat
from zoedge.scoring.tasks.chat import TEMPLATE_FOLDER, Chat, render_chats

WORDS = SimpleNamespace(bos_token="<s>", eos_token="</s>", pad_token=None, unk_token=None)
TALK = [
    turn("system", "Be kind."), turn("user", "Hi"), turn("assistant", "Hello"), turn("user", "Bye"), turn("assistant", "Ciao"),
]  # fmt: skip


def own(tokenizer: Any, template: str | None) -> Any:
    from copy import deepcopy

    found = deepcopy(tokenizer)
    found.chat_template = template
    return found


def beginning(tokenizer: Any) -> Any:
    """The tokenizer as LLaMA's is: it puts <s> first."""
    from copy import deepcopy

    from tokenizers.processors import TemplateProcessing

    found = deepcopy(tokenizer)
    found.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return found


# -- rows


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"messages": TALK[1:3]}, TALK[1:3]),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}], "id": 3},
            TALK[1:3],
        ),
        ({"conversations": [{"from": r, "value": "x"} for r in ("system", "user", "assistant")]},
         [turn(r, "x") for r in ("system", "user", "assistant")]),
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, [turn("user", "Add.\n\n1 2"), turn("assistant", "3")]),
        ({"instruction": "Go.", "input": "", "output": "3"}, [turn("user", "Go."), turn("assistant", "3")]),
        ({"instruction": "Go.", "output": 3}, [turn("user", "Go."), turn("assistant", "3")]),
        ({"prompt": "a ", "completion": "b"}, [turn("user", "a "), turn("assistant", "b")]),
    ],
)  # fmt: skip
def test_four_kinds_of_rows(fields: dict[str, Any], wanted: list[dict[str, str]]) -> None:
    assert row_to_messages(Row("f:1", fields)) == wanted


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"text": "a"}, "no conversation: messages, conversations, instruction and output, or prompt and completion. "
         "It has: text."),
        ({"messages": "hi"}, 'field "messages": not a list of {role, content}.'),
        ({"messages": ["hi"]}, 'field "messages": not a list of {role, content}.'),
        ({"messages": []}, "no answer of the assistant's."),
        ({"messages": [turn("user", "hi")]}, "no answer of the assistant's."),
        ({"messages": [turn("human", "hi")]}, 'messages, turn 1: role "human" is not one of system, user, assistant, dev'),
        ({"messages": [turn("user", "hi"), {"content": "x"}]}, 'messages, turn 2: role "None" is not one of'),
        ({"messages": [turn("user", "hi"), {"role": "user", "content": 3}]}, "messages, turn 2: content is missing, empty"),
        ({"messages": [turn("user", "hi"), turn("assistant", " ")]}, "messages, turn 2: content is missing, empty"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, 'conversations, turn 1: from "bot" is not one of human,'),
        ({"instruction": "a"}, 'field "output": missing. It has: instruction.'),
        ({"prompt": "a", "completion": ""}, 'field "completion": empty.'),
    ],
)  # fmt: skip
def test_a_bad_row_and_its_sentence(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError) as e:
        row_to_messages(Row("f:1", fields))
    assert str(e.value).startswith(f"f:1: {sentence}")


def test_all_bad_rows_are_told_together(tokenizer: Any) -> None:
    rows = [Row(f"f:{i}", {"prompt": "a", "completion": ""}) for i in (2, 10, 1)]
    with pytest.raises(DataError) as e:
        Chat("plain").encode(rows, tokenizer, 64, "error")
    assert [line.partition(": ")[0] for line in str(e.value).splitlines()] == ["f:1", "f:2", "f:10"]


# -- what is scored

EXACT = {
    "chatml": (
        "<s><|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\nCiao<|im_end|>\n",
        ["Hello<|im_end|>", "Ciao<|im_end|>"],
    ),
    "llama2": (
        "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] Bye [/INST] Ciao </s>",
        [" Hello </s>", " Ciao </s>"],
    ),
    "plain": ("<s>Be kind.HiHello</s>ByeCiao</s>", ["Hello</s>", "Ciao</s>"]),
}


def test_every_template_is_here() -> None:
    assert {path.stem for path in TEMPLATE_FOLDER.glob("*.jinja")} == set(EXACT)


@pytest.mark.parametrize("name", EXACT)
def test_the_exact_text_and_the_answers_in_it(name: str, tokenizer: Any) -> None:
    source = (TEMPLATE_FOLDER / f"{name}.jinja").read_text()
    (found,) = render_chats(source, [TALK], WORDS)[0]["texts"]
    assert (found["text"], [found["text"][a:b] for a, b in found["answers"]]) == EXACT[name]
    from transformers.utils.chat_template_utils import render_jinja_template  # the template means the same to others

    assert render_jinja_template([TALK], chat_template=source, bos_token="<s>", eos_token="</s>")[0] == [EXACT[name][0]]
    whole, answers = EXACT[name]
    for own, begin in (
        (tokenizer, ""),
        (beginning(tokenizer), "<s>"),
    ):  # what the tokenizer puts first is what it begins with
        examples, _ = Chat(name).encode([Row("f:1", {"messages": TALK})], own, 400, "error")
        ids = [*examples.tokens[0], examples.targets[0][-1]]
        assert tokenizer.decode(ids) == (begin + whole.replace("<s>", "")).rstrip("\n") or name == "llama2"
    whole = whole.replace("</s><s>", "</s>") if not begin else whole
    assert tokenizer.decode(ids) == whole.rstrip("\n") and [ids[r + 1] for r in examples.rows[0]] == examples.targets[0]
    assert tokenizer.decode(examples.targets[0]) == "".join(answers)
    assert ids == tokenizer(whole.rstrip("\n"), add_special_tokens=False).input_ids


def test_a_token_on_both_sides_of_an_answers_start_is_scored(tokenizer: Any) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    rows = [
        Row("f:1", {"prompt": "it was", "completion": " great"}),
        Row("f:2", {"prompt": "it was gr", "completion": "eat"}),
    ]
    examples, _ = Chat().encode(rows, own(tokenizer, template), 64, "error")
    assert [tokenizer.decode(t) for t in examples.targets] == [" great", " great"]


def test_the_tokenizers_own_template_and_its_absence(tokenizer: Any) -> None:
    rows = [Row("f:1", {"messages": TALK})]
    source = (TEMPLATE_FOLDER / "chatml.jinja").read_text()
    named = Chat("chatml").encode(rows, beginning(tokenizer), 400, "error")[0]
    assert Chat().encode(rows, own(tokenizer, source), 400, "error")[0].digest() == named.digest()
    several = own(tokenizer, {"default": source, "tool_use": "{{ 1 }}"})  # as Hermes has them
    assert Chat().encode(rows, several, 400, "error")[0].digest() == named.digest()
    assert Chat().source(several, with_tools=True) == "{{ 1 }}"
    with pytest.raises(DataError, match=r"chat templates of the names rag, and none is called default\. Write the one"):
        Chat().encode(rows, own(tokenizer, {"rag": source}), 400, "error")
    with pytest.raises(DataError, match=r"^task.format: the tokenizer has no chat template of its own\. Set chatml,"):
        Chat().encode(rows, own(tokenizer, None), 400, "error")


def test_marks_of_generation_are_read_over() -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{%- generation -%}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}:{% endif %}{% endfor %}"
    )
    assert render_chats(template, [TALK], WORDS) == [
        {"texts": [{"text": "Be kind.:Hi:HelloBye:Ciao", "answers": [[12, 17], [21, 25]]}]}
    ]


# -- templates that misbehave


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{{ raise_exception('no system here') }}", "no system here"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{% if", "TemplateSyntaxError: unexpected 'end of template'"),
        ("{{ nothing.here }}", "'nothing' is undefined"),
        ("{{ strftime_now('%d') }}", "'strftime_now' is undefined"),
        (
            "{% for m in messages %}{{ m.content if loop.last else '' }}{% endfor %}",
            "it leaves out the system message of turn 1. Take it out of the row, or set task.format to a template that "
            "writes it",
        ),
        (
            "{% for m in messages %}{{ m.content if m.role != 'user' else '' }}{% endfor %}",
            "it leaves out the user message of turn 2. Take it out of the row, or set task.format to a template that "
            "writes it",
        ),
        (
            "{% for m in messages %}{{ m.content[:4] if m.role == 'assistant' else m.content }}{% endfor %}",
            "it leaves out the content of turn 3, or a part of it, which would not be trained on. Take it out of the row, or "
            "set task.format to a template that writes it",
        ),
        (
            "{% for m in messages %}{{ m.content | reverse if m.role == 'assistant' else m.content }}{% endfor %}"
            "{% if add_generation_prompt %}?{% endif %}",
            "where an answer begins cannot be found. Set task.format: chatml, or end rows after their first answer",
        ),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_used(template: str, sentence: str, tokenizer: Any) -> None:
    with pytest.raises(DataError) as e:
        Chat().encode([Row("f:7", {"messages": TALK})], own(tokenizer, template), 400, "error")
    assert str(e.value) == f"f:7: the chat template: {sentence}."


def test_turns_that_a_template_refuses() -> None:
    source = (TEMPLATE_FOLDER / "llama2.jinja").read_text()
    (found,) = render_chats(source, [[turn("assistant", "a")]], WORDS)
    assert found == {"error": "user and assistant must take turns, the user first"}


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 10**10 }}",
        "{{ 'x'.ljust(10**10) }}",
    ],
)
def test_a_template_that_loops_or_swells_is_ended(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "CPU_SECONDS", 1)
    with pytest.raises(
        DataError, match=r"^The chat template took more than 1 s or 1 GiB, and was ended\. Set task\.format"
    ):
        render_chats(template, [TALK], WORDS)


# -- lengths


def test_the_last_answer_is_kept(tokenizer: Any) -> None:
    rows = [Row("f:1", {"messages": TALK})]
    whole, _ = Chat("plain").encode(rows, tokenizer, 400, "error")
    ids, count = whole.tokens[0], len(tokenizer("Ciao</s>").input_ids)
    cut, counts = Chat("plain").encode(rows, tokenizer, count + 2, "truncate")
    assert counts == {"truncated": 1, "dropped": 0} and cut.tokens[0] == [ids[0], *ids[-count - 1 :]]
    assert tokenizer.decode(cut.targets[0]) == "Ciao</s>"
    assert cut.rows[0] == list(range(2, count + 2))
