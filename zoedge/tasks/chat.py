"""Conversations: loss = cross-entropy of the assistant's answers, up to what ends a turn; the mean over all such tokens.

Rows: messages (role, content), ShareGPT (conversations of from, value), Alpaca (instruction, input, output), or prompt and
completion. Templates are rendered in a sandbox, in a process with limits on time and memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError, nearest, plain
from ._encode import overflowed, shortened
from ._examples import Examples
from ._rows import Row, many, text_of
from .lm import Modelling

TEMPLATES = Path(__file__).parent / "templates"
SANDBOX = Path(__file__).with_name("_sandbox.py")
SECONDS, MEMORY, TEXT = 10, 1 << 30, 32 << 20  # CPU time, address space and output of a template; more for many chats
ROLES = ("system", "user", "assistant")
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
Message = dict[str, str]


@dataclass(frozen=True)
class Chat:
    """format: own (the tokenizer's), or one of zoedge/tasks/templates: chatml, llama2, plain."""

    format: str = "own"

    def __post_init__(self) -> None:
        if self.format not in (known := ["own", *sorted(path.stem for path in TEMPLATES.glob("*.jinja"))]):
            near = nearest(self.format, known)
            raise ValueError(f"format: '{plain(self.format)}' is not {' or '.join(known)}{near}")

    def fields(self) -> list[str]:
        """None: rows are told apart by all that they hold."""
        return []

    def encode(self, rows: list[Row], tokenizer: Any, limit: int, overflow: str) -> tuple[Examples, dict[str, int]]:
        """Tokenised rows, and counts of what was truncated (from the left) or dropped. DataError: rows, template, lengths."""
        chats, faults = [], []
        for row in rows:
            try:
                chats.append(messages(row))
            except DataError as e:
                faults.append(e)
        many(faults)
        found = render(self.source(tokenizer), chats, tokenizer)
        many(
            [
                DataError(f"{r.where}: the chat template: {plain(f['error']).rstrip('.')}.")
                for r, f in zip(rows, found)
                if "error" in f
            ]
        )
        tokens = tokenizer([f["text"] for f in found], add_special_tokens=False, return_offsets_mapping=True)
        first = {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None}
        examples, lengths = Examples(1), []
        for row, f, ids, places in zip(rows, found, tokens.input_ids, tokens.offset_mapping):
            scored = [i for i, (a, b) in enumerate(places) if i and any(a < end and b > at for at, end in f["answers"])]
            if not scored:
                raise DataError(f"{row.where}: no token of an answer is left to be scored.")
            lengths.append(scored[-1])
            if (cut := max(0, lengths[-1] - limit)) and overflow != "truncate":
                continue
            examples.add(*shortened(ids, scored, int(ids[0] in first), cut), 0, row.where)
        return examples, overflowed(rows, lengths, limit, overflow)

    def over(self, train: Examples, seed: int, size: int) -> Modelling:
        return Modelling(self, train, seed, size)

    def source(self, tokenizer: Any) -> str:
        """The template. DataError: the tokenizer has none."""
        if self.format != "own":
            return (TEMPLATES / f"{self.format}.jinja").read_text(encoding="utf-8")
        if not isinstance(tokenizer.chat_template, str):
            raise DataError("task.format: the tokenizer has no chat template of its own. Set chatml, llama2 or plain.")
        return tokenizer.chat_template


def messages(row: Row) -> list[Message]:
    """A row of any of the four kinds as messages. DataError: it is none, or has no answer of the assistant's."""
    fields = row.fields
    if "messages" in fields:
        chat = turns(row, "messages", "role", "content", {role: role for role in ROLES})
    elif "conversations" in fields:
        chat = turns(row, "conversations", "from", "value", SPEAKERS)
    elif "instruction" in fields:
        more = f"\n\n{text_of(row, 'input')}" if fields.get("input") else ""
        chat = [said("user", text_of(row, "instruction") + more), said("assistant", text_of(row, "output"))]
    elif "prompt" in fields:
        chat = [said("user", text_of(row, "prompt")), said("assistant", text_of(row, "completion"))]
    else:
        raise DataError(
            f"{row.where}: no conversation: messages, conversations, instruction and output, or prompt and completion. "
            f"It has: {', '.join(map(plain, fields))}."
        )
    if not any(message["role"] == "assistant" for message in chat):
        raise DataError(f"{row.where}: no answer of the assistant's.")
    return chat


def said(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def turns(row: Row, field: str, role: str, content: str, roles: dict[str, str]) -> list[Message]:
    """The messages in a list field of tables with a role and a text."""
    if not isinstance(found := row.fields[field], list) or not all(isinstance(turn, dict) for turn in found):
        raise DataError(f'{row.where}: field "{field}": not a list of {{{role}, {content}}}.')
    chat = []
    for i, turn in enumerate(found, 1):
        if (speaker := turn.get(role)) not in roles:
            known = ", ".join(roles)
            raise DataError(f'{row.where}: {field}, turn {i}: {role} "{plain(str(speaker))}" is not one of {known}.')
        if not isinstance(turn.get(content), str) or not turn[content].strip():
            raise DataError(f"{row.where}: {field}, turn {i}: {content} is missing, empty or not a text.")
        chat.append(said(roles[speaker], turn[content]))
    return chat


def question(template: str, text: str, tokenizer: Any) -> str:
    """A user's text as training has it before an answer. DataError: the template cannot write it."""
    found = render(template, [[said("user", text), said("assistant", "-")]], tokenizer)[0]
    if "error" in found:
        raise DataError(f"The chat template: {plain(found['error']).rstrip('.')}.")
    return found["text"][: found["answers"][0][0]]


def render(template: str, chats: list[list[Message]], tokenizer: Any) -> list[dict[str, Any]]:
    """{text, answers: [begin, end] of each} or {error} a chat, from a child process. DataError: it had to be ended."""
    words = {name: getattr(tokenizer, name) or "" for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    size = sum(len(message["content"]) for chat in chats for message in chat)
    seconds = SECONDS + len(chats) // 200 + (size >> 18)  # a chat takes a millisecond
    given = {
        "template": template, "words": words, "chats": chats, "seconds": seconds, "bytes": MEMORY + 16 * size,
        "text": TEXT + 12 * size + 8192 * len(chats),
    }  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(SANDBOX)], input=json.dumps(given).encode(), capture_output=True, check=False,
            timeout=60 + 10 * seconds,
        )  # fmt: skip
        ended = done.returncode != 0
    except subprocess.TimeoutExpired:  # it slept, or the machine did
        ended = True
    if ended:
        raise DataError(
            f"The chat template took more than {seconds} s or {MEMORY >> 30} GiB, and was ended. Set task.format: chatml, "
            "llama2 or plain."
        )
    return json.loads(done.stdout)
