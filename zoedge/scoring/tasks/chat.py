"""Conversations: loss = cross-entropy of the assistant's answers, up to what ends a turn; the mean over all such tokens.

Rows: messages (role, content), ShareGPT (conversations of from, value), Alpaca (instruction, input, output), or prompt and
completion (_formats.py). Templates are rendered in a sandbox, in a process with limits on time and memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ...errors import DataError, nearest, plain
from ..rows.formats import CHATS, Message, conversations, said
from ..rows.row import Row, many, natural
from ._encode import overflowed, shortened
from ._examples import Examples
from .lm import Modelling

TEMPLATES = Path(__file__).parent / "templates"
SANDBOX = Path(__file__).with_name("_sandbox.py")
SECONDS, MEMORY, TEXT = 10, 1 << 30, 32 << 20  # CPU time, address space and output of a template; more for many chats
SOURCE = 1 << 20  # bytes of a template's file


@dataclass(frozen=True)
class Chat:
    """format: the chat template: own (the tokenizer's), chatml, llama2, plain, or a file, FILE.jinja."""

    formats: ClassVar[tuple[str, ...]] = CHATS
    format: str = "own"

    def __post_init__(self) -> None:
        known = ["own", *sorted(path.stem for path in TEMPLATES.glob("*.jinja"))]
        if self.format not in known and not self.format.endswith(".jinja"):
            near = nearest(self.format, known)
            raise ValueError(f"format: '{plain(self.format)}' is not {' or '.join(known)} or FILE.jinja{near}")

    def fields(self) -> list[str]:
        """None: rows are told apart by all that they hold."""
        return []

    def encode(self, rows: list[Row], tokenizer: Any, limit: int, overflow: str) -> tuple[Examples, dict[str, int]]:
        """Tokenised rows, and counts of what was truncated (from the left) or dropped. DataError: rows, template, lengths."""
        chats = conversations(rows)
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
        examples, lengths, bare = Examples(1), [], []
        for row, f, ids, places in zip(rows, found, tokens.input_ids, tokens.offset_mapping):
            scored = [i for i, (a, b) in enumerate(places) if i and any(a < end and b > at for at, end in f["answers"])]
            if not scored:
                raise DataError(f"{row.where}: no token of an answer is left to be scored.")
            lengths.append(scored[-1])
            if (cut := max(0, lengths[-1] - limit)) and overflow != "truncate":
                continue
            start, answer = int(ids[0] in first), f["answers"][-1][0]
            if cut and next(i for i in scored if places[i][1] > answer) - cut <= start:
                bare.append(row.where)
            examples.add(*shortened(ids, scored, start, cut), 0, row.where)
        if bare:
            raise DataError(
                f"{len(bare):,} of {len(rows):,} samples ({100 * len(bare) / len(rows):.1f} %) keep nothing of what was asked "
                f"after cutting to {limit:,} tokens: their last answer alone fills them (first {min(bare, key=natural)}). "
                f"Raise data.max_length (p99 = {sorted(lengths)[int(0.99 * (len(rows) - 1))]:,}) or set data.on_overflow: drop."
            )
        return examples, overflowed(rows, lengths, limit, overflow)

    def over(self, train: Examples, seed: int, size: int) -> Modelling:
        return Modelling(self, train, seed, size)

    def source(self, tokenizer: Any) -> str:
        """The template. DataError: the tokenizer has none."""
        if self.format.endswith(".jinja"):
            return written(Path(self.format).expanduser())
        if self.format != "own":
            return (TEMPLATES / f"{self.format}.jinja").read_text(encoding="utf-8")
        if not isinstance(tokenizer.chat_template, str):
            raise DataError(
                "task.format: the tokenizer has no chat template of its own. Set chatml, llama2 or plain, or a file, "
                "FILE.jinja. `zoedge preview` shows the result."
            )
        return tokenizer.chat_template


def written(path: Path) -> str:
    """A template of the user's. DataError: no such file, or not a text."""
    try:
        with path.open("rb") as file:
            raw = file.read(SOURCE + 1)
        text = raw.decode() if len(raw) <= SOURCE else None
    except OSError as e:
        raise DataError(f"task.format: {path}: cannot be read: {e.strerror}.") from None
    except UnicodeDecodeError as e:
        raise DataError(f"task.format: {path}: not UTF-8 (byte {e.start}).") from None
    if text is None:
        raise DataError(f"task.format: {path}: larger than 1 MiB: not a template.")
    return text


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
