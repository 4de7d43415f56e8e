"""Conversations. The loss is the cross-entropy of the assistant's answers, averaged over their tokens in the batch.

The tokens that end a turn are part of an answer. Rows are messages (role, content), ShareGPT (conversations of from,
value), Alpaca (instruction, input, output), or prompt and completion (rows/formats.py). Chat templates are rendered in a
sandbox, in a process with limits on time and memory (_sandbox.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_doc import Doc

from ...core.child import ChildFailed, ask_python
from ...core.types import AbstractTask
from ...errors import DataError, make_printable, suggest_nearest
from ..rows.formats import CHAT_FORMATS, Message, make_message, rows_to_chats
from ..rows.row import Row, natural_sort_key, raise_faults
from ._encode import check_overflow, truncate_tokens
from ._examples import Examples
from .lm import LmTraining

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


TEMPLATE_FOLDER = Path(__file__).parent / "templates"
SANDBOX_SCRIPT = Path(__file__).with_name("_sandbox.py")
# Limits of the process that renders a template. `render_chats` adds to them for many or long chats.
CPU_SECONDS = 10
MEMORY_LIMIT = 1 << 30  # bytes of address space
TEXT_LIMIT = 32 << 20  # characters of output
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
        """Return no field: two rows are different if any of their fields is."""
        return []

    def encode(
        self, rows: list[Row], tokenizer: PreTrainedTokenizerBase, limit: int, overflow: str
    ) -> tuple[Examples, dict[str, int]]:
        """Return the tokenised rows, and how many were truncated from the left or dropped.

        limit: the number of tokens in a forward at most.
        DataError: a row is no conversation, the template refuses it, nothing of a question would be left, or
        `check_overflow` raises it.
        """
        chats = rows_to_chats(rows)  # first: rows that are no conversations have no use for a template
        rendered = render_chats(self.source(tokenizer), chats, tokenizer)
        raise_faults(
            [
                DataError(f"{row.where}: the chat template: {make_printable(chat['error']).rstrip('.')}.")
                for row, chat in zip(rows, rendered)
                if "error" in chat
            ]
        )
        encoded = tokenizer([chat["text"] for chat in rendered], add_special_tokens=False, return_offsets_mapping=True)
        openers = {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None}
        examples, lengths = Examples(1), []
        without_question: list[str] = []
        for row, chat, ids, spans in zip(rows, rendered, encoded.input_ids, encoded.offset_mapping):
            scored = find_answer_tokens(spans, chat["answers"])
            if not scored:
                raise DataError(f"{row.where}: no token of an answer is left to be scored.")
            lengths.append(scored[-1])
            cut = max(0, lengths[-1] - limit)
            if cut and overflow != "truncate":
                continue
            start = int(ids[0] in openers)
            last_answer = chat["answers"][-1][0]
            if cut and next(i for i in scored if spans[i][1] > last_answer) - cut <= start:
                without_question.append(row.where)
            examples.add(*truncate_tokens(ids, scored, start, cut), 0, row.where)
        if without_question:
            count = len(without_question)
            raise DataError(
                f"{count:,} of {len(rows):,} samples ({100 * count / len(rows):.1f} %) keep nothing of what was asked "
                f"after cutting to {limit:,} tokens: their last answer alone fills them (first "
                f"{min(without_question, key=natural_sort_key)}). "
                f"Raise data.max_length (p99 = {sorted(lengths)[int(0.99 * (len(rows) - 1))]:,}) or set data.on_overflow: drop."
            )
        return examples, check_overflow(rows, lengths, limit, overflow)

    def make_training(self, train: Examples, seed: int, size: int) -> LmTraining:
        """Return the task of a run over these examples, in batches of `size`."""
        return LmTraining(self, train, seed, size)

    def source(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Return the text of the chat template. DataError: the tokenizer has none, or a file cannot be read."""
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


def find_answer_tokens(spans: list[tuple[int, int]], answers: list[tuple[int, int]]) -> list[int]:
    """Return the positions of the tokens, but for position 0, that share a character with one of the answers.

    Args:
        spans: (begin, end) of each token in the text.
        answers: (begin, end) of each answer in it.
    """
    return [
        i
        for i, (token_begin, token_end) in enumerate(spans)
        if i and any(token_begin < end and token_end > begin for begin, end in answers)
    ]


def read_template(path: Path) -> str:
    """Return a user's template. DataError: there is no such file, or it is no UTF-8 text, or larger than 1 MiB."""
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


def render_question(template: str, text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a user's message as the model sees it in training, up to where the answer begins.

    DataError: the template refuses it.
    """
    messages = [make_message("user", text), make_message("assistant", "-")]
    (chat,) = render_chats(template, [messages], tokenizer)
    if "error" in chat:
        raise DataError(f"The chat template: {make_printable(chat['error']).rstrip('.')}.")
    answer_begin: int = chat["answers"][0][0]
    return chat["text"][:answer_begin]


def render_chats(template: str, chats: list[list[Message]], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Render chats in a child process, and return {text, answers: [begin, end] of each} or {error} for each chat.

    DataError: the template took too much time or memory, and was ended.
    """
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
        # -I: the user's PYTHON... variables are ignored. The timeout ends a template that waits without using CPU time.
        return ask_python(["-I", str(SANDBOX_SCRIPT)], "The chat template", given, timeout=60 + 10 * seconds)
    except ChildFailed:
        raise DataError(
            f"The chat template took more than {seconds} s or {MEMORY_LIMIT >> 30} GiB, and was ended. "
            "Set task.format: chatml, llama2 or plain."
        ) from None
