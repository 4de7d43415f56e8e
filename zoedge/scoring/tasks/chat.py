"""Conversations: loss = cross-entropy of the assistant's answers, up to what ends a turn; the mean over all such tokens.

Rows: messages (role, content), ShareGPT (conversations of from, value), Alpaca (instruction, input, output), or prompt and
completion (_formats.py). Templates are rendered in a sandbox, in a process with limits on time and memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_doc import Doc

from ...core.child import ChildFailed, ask_python
from ...core.types import AbstractTask
from ...errors import DataError, make_printable, suggest_nearest
from ..rows.formats import CHAT_FORMATS, Message, make_message, rows_to_chats
from ..rows.row import Row, natural_sort_key, raise_faults
from ._encode import check_overflow, truncate_tokens
from ._examples import Examples
from .lm import LmTraining

TEMPLATE_FOLDER = Path(__file__).parent / "templates"
SANDBOX_SCRIPT = Path(__file__).with_name("_sandbox.py")
CPU_SECONDS, MEMORY_LIMIT, TEXT_LIMIT = (
    10,
    1 << 30,
    32 << 20,
)  # CPU time, address space and output of a template; more for many chats
TEMPLATE_LIMIT = 1 << 20  # bytes of a template's file


@dataclass(frozen=True)
class Chat(AbstractTask):
    """The task of conversations, and its option."""

    formats: ClassVar[tuple[str, ...]] = CHAT_FORMATS
    format: Annotated[
        str, Doc("The chat template: own (the tokenizer's), chatml, llama2, plain, or a file, FILE.jinja.")
    ] = "own"

    def __post_init__(self) -> None:
        known = ["own", *sorted(path.stem for path in TEMPLATE_FOLDER.glob("*.jinja"))]
        if self.format not in known and not self.format.endswith(".jinja"):
            near = suggest_nearest(self.format, known)
            raise ValueError(f"format: '{make_printable(self.format)}' is not {' or '.join(known)} or FILE.jinja{near}")

    def fields(self) -> list[str]:
        """None: rows are told apart by all that they hold."""
        return []

    def encode(self, rows: list[Row], tokenizer: Any, limit: int, overflow: str) -> tuple[Examples, dict[str, int]]:
        """Tokenised rows, and counts of what was truncated (from the left) or dropped. DataError: rows, template, lengths."""
        chats = rows_to_chats(rows)
        found = render_chats(self.source(tokenizer), chats, tokenizer)
        raise_faults(
            [
                DataError(f"{r.where}: the chat template: {make_printable(f['error']).rstrip('.')}.")
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
            examples.add(*truncate_tokens(ids, scored, start, cut), 0, row.where)
        if bare:
            raise DataError(
                f"{len(bare):,} of {len(rows):,} samples ({100 * len(bare) / len(rows):.1f} %) keep nothing of what was asked "
                f"after cutting to {limit:,} tokens: their last answer alone fills them (first "
                f"{min(bare, key=natural_sort_key)}). "
                f"Raise data.max_length (p99 = {sorted(lengths)[int(0.99 * (len(rows) - 1))]:,}) or set data.on_overflow: drop."
            )
        return examples, check_overflow(rows, lengths, limit, overflow)

    def over(self, train: Examples, seed: int, size: int) -> LmTraining:
        return LmTraining(self, train, seed, size)

    def source(self, tokenizer: Any) -> str:
        """The template. DataError: the tokenizer has none."""
        if self.format.endswith(".jinja"):
            return read_template(Path(self.format).expanduser())
        if self.format != "own":
            return (TEMPLATE_FOLDER / f"{self.format}.jinja").read_text(encoding="utf-8")
        if not isinstance(tokenizer.chat_template, str):
            raise DataError(
                "task.format: the tokenizer has no chat template of its own. Set chatml, llama2 or plain, or a file, "
                "FILE.jinja. `zoedge preview` shows the result."
            )
        return tokenizer.chat_template


def read_template(path: Path) -> str:
    """A template of the user's. DataError: no such file, or not a text."""
    try:
        with path.open("rb") as file:
            raw = file.read(TEMPLATE_LIMIT + 1)
        text = raw.decode() if len(raw) <= TEMPLATE_LIMIT else None
    except OSError as e:
        raise DataError(f"task.format: {path}: cannot be read: {e.strerror}.") from None
    except UnicodeDecodeError as e:
        raise DataError(f"task.format: {path}: not UTF-8 (byte {e.start}).") from None
    if text is None:
        raise DataError(f"task.format: {path}: larger than 1 MiB: not a template.")
    return text


def render_question(template: str, text: str, tokenizer: Any) -> str:
    """A user's text as training has it before an answer. DataError: the template cannot write it."""
    found = render_chats(template, [[make_message("user", text), make_message("assistant", "-")]], tokenizer)[0]
    if "error" in found:
        raise DataError(f"The chat template: {make_printable(found['error']).rstrip('.')}.")
    return found["text"][: found["answers"][0][0]]


def render_chats(template: str, chats: list[list[Message]], tokenizer: Any) -> list[dict[str, Any]]:
    """{text, answers: [begin, end] of each} or {error} a chat, from a child process. DataError: it had to be ended."""
    words = {name: getattr(tokenizer, name) or "" for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    size = sum(len(message["content"]) for chat in chats for message in chat)
    seconds = CPU_SECONDS + len(chats) // 200 + (size >> 18)  # a chat takes a millisecond
    given = {
        "template": template,
        "words": words,
        "chats": chats,
        "seconds": seconds,
        "bytes": MEMORY_LIMIT + 16 * size,
        "text": TEXT_LIMIT + 12 * size + 8192 * len(chats),
    }
    try:
        # -I: the script sees no variable PYTHON... of the user's; the timeout is for a template, or a machine, that sleeps
        return ask_python(["-I", str(SANDBOX_SCRIPT)], "The chat template", given, timeout=60 + 10 * seconds)
    except ChildFailed:
        raise DataError(
            f"The chat template took more than {seconds} s or {MEMORY_LIMIT >> 30} GiB, and was ended. Set "
            "task.format: chatml, "
            "llama2 or plain."
        ) from None
