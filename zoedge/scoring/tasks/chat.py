"""Conversations. The loss is the cross-entropy of the assistant's answers, averaged over their tokens in the batch.

The tokens that end a turn are part of an answer. Rows are messages (role, content), ShareGPT (conversations of from,
value), Alpaca (instruction, input, output), or prompt and completion (rows/formats.py). Chat templates are rendered in a
sandbox, in a process with limits on time and memory (_sandbox.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from annotated_doc import Doc

from ...core.child import ChildFailed, ask_python
from ...core.types import AbstractTask
from ...errors import DataError, make_printable, suggest_nearest
from ..rows.formats import CHAT_FORMATS, describe_chat, parse_segments, rows_to_chats
from ..rows.row import Row, RowError, natural_sort_key, raise_faults
from ..rows.turns import Message, make_message, parse_tools
from ..sources.places import locate
from ..sources.pointers import check_pointer
from ._encode import check_overflow, leading_tokens, truncate_tokens
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

    def content(self, row: Row) -> str:
        """Return a row's conversation, whatever format it has. DataError: it has none."""
        return json.dumps(describe_chat(row), sort_keys=True)

    def encode(
        self, rows: list[Row], tokenizer: PreTrainedTokenizerBase, limit: int, overflow: str
    ) -> tuple[Examples, dict[str, int]]:
        """Return the tokenised rows, and how many were truncated from the left or dropped.

        A row whose template writes earlier turns otherwise once more follow is several examples, one for each answer.

        limit: the number of tokens in a forward at most.
        DataError: a row is no conversation, the template refuses it, nothing of a question would be left, or
        `check_overflow` raises it.
        """
        parts = self.render_rows(rows, tokenizer)
        encoded = tokenizer([part.text for _, part in parts], add_special_tokens=False, return_offsets_mapping=True)
        openers = {tokenizer.bos_token_id, tokenizer.cls_token_id, *leading_tokens(tokenizer)[:1]} - {None}
        examples, lengths = Examples(1), []
        unscored: dict[str, DataError] = {}
        without_question: list[str] = []
        for (row, part), ids, spans in zip(parts, encoded.input_ids, encoded.offset_mapping):
            scored = find_answer_tokens(spans, part.answers)
            if not scored:
                unscored[row.where] = DataError(f"{row.where}: no token of an answer is left to be scored.")
                continue
            lengths.append(scored[-1])
            cut = max(0, lengths[-1] - limit)
            if cut and overflow != "truncate":
                continue
            start = int(ids[0] in openers)
            last_answer = part.answers[-1][0]
            if cut and next(i for i in scored if spans[i][1] > last_answer) - cut <= start:
                without_question.append(row.where)
            examples.add(*truncate_tokens(ids, scored, start, cut), 0, row.where)
        raise_faults(unscored)
        texts = [row for row, _ in parts]
        if without_question:
            count = len(without_question)
            raise RowError(
                without_question,
                f"{count:,} of {len(texts):,} samples ({100 * count / len(texts):.1f} %) keep nothing of what was asked "
                f"after cutting to {limit:,} tokens: their last answer alone fills them (first "
                f"{min(without_question, key=natural_sort_key)}). "
                f"Raise data.max_length (p99 = {sorted(lengths)[int(0.99 * (len(texts) - 1))]:,}) or set "
                "data.on_overflow: drop.",
            )
        return examples, check_overflow(texts, lengths, limit, overflow)

    def render_rows(self, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> list[tuple[Row, ChatText]]:
        """Return the texts of the rows, one or several each, in the rows' order. DataError names every row without one."""
        chats = rows_to_chats(rows)  # first: rows that are no conversations have no use for a template
        tools = [parse_tools(row) for row in rows]
        faults: dict[str, DataError] = {}
        texts: dict[int, list[ChatText]] = {}
        for with_tools in (False, True):
            chosen = [i for i, chat in enumerate(chats) if chat and (tools[i] is not None) == with_tools]
            if not chosen:
                continue
            source, begin = self.source(tokenizer, with_tools), self.beginning(tokenizer)
            rendered = render_chats(source, [chats[i] for i in chosen], tokenizer, [tools[i] for i in chosen], begin)
            for i, answer in zip(chosen, rendered):
                if "error" in answer:
                    text = make_printable(answer["error"], 400).rstrip(".")
                    faults[rows[i].where] = DataError(f"{rows[i].where}: the chat template: {text}.")
                else:
                    texts[i] = [ChatText(**part) for part in answer["texts"]]
        raise_faults(faults)
        for i, chat in enumerate(chats):
            if not chat:
                texts[i] = [join_segments(parse_segments(rows[i]))]
        return [(row, text) for i, row in enumerate(rows) for text in texts[i]]

    def make_training(self, train: Examples, seed: int, size: int) -> LmTraining:
        """Return the task of a run over these examples, in batches of `size`."""
        return LmTraining(self, train, seed, size)

    def source(self, tokenizer: PreTrainedTokenizerBase, with_tools: bool = False) -> str:
        """Return the text of the chat template. DataError: the tokenizer has none, or a file cannot be read.

        with_tools: a tokenizer with several templates by name has one for conversations with tools, tool_use.
        """
        if self.format.endswith(".jinja"):
            return read_template(Path(locate(self.format)).expanduser())
        if self.format != "own":
            return (TEMPLATE_FOLDER / f"{self.format}.jinja").read_text(encoding="utf-8")
        templates: Any = tokenizer.chat_template
        if isinstance(templates, dict):
            wanted = ["tool_use", "default"] if with_tools else ["default"]
            if name := next((name for name in wanted if name in templates), ""):
                return str(templates[name])
            raise DataError(
                f"task.format: the tokenizer has chat templates of the names {', '.join(map(make_printable, templates))}, and "
                "none is called default. Write the one that is meant into a file, FILE.jinja, and name that."
            )
        if not isinstance(templates, str):
            raise DataError(
                "task.format: the tokenizer has no chat template of its own. Set chatml, llama2 or plain, or a file, "
                "FILE.jinja. `zoedge preview` shows the result."
            )
        return templates

    def beginning(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """Return what a template of ours begins with, the text of what the tokenizer puts first; None: it is not ours."""
        if self.format == "own" or self.format.endswith(".jinja"):
            return None
        return "".join(tokenizer.convert_ids_to_tokens(leading_tokens(tokenizer)))

    def render_question(self, text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
        """Return a user's message as the model sees it in training, up to where the answer begins, and what ends an answer.

        What ends an answer is "" if the template writes nothing there that is scored. DataError: the template refuses it.
        """
        messages = [make_message("user", text), make_message("assistant", "-")]
        source, begin = self.source(tokenizer), self.beginning(tokenizer)
        (chat,) = render_chats(source, [messages], tokenizer, [None], begin)
        if "error" in chat:
            raise DataError(f"The chat template: {make_printable(chat['error'], 400).rstrip('.')}.")
        part = ChatText(**chat["texts"][-1])
        first, last = part.answers[-1]
        return part.text[:first], part.text[first:last].rpartition("-")[2]


class ChatText(NamedTuple):
    """A text that a chat template writes. answers: (begin, end) of each answer in it that is trained on."""

    text: str
    answers: list[tuple[int, int]]


def join_segments(pieces: list[tuple[str, bool]]) -> ChatText:
    """Return the text of segments, each with whether it is trained on, which no template changes."""
    text, answers = "", []
    for piece, is_answer in pieces:
        if is_answer:
            answers.append((len(text), len(text) + len(piece)))
        text += piece
    return ChatText(text, answers)


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
        check_pointer(path, f"task.format: {path}")
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


def render_chats(
    template: str,
    chats: list[list[Message]],
    tokenizer: PreTrainedTokenizerBase,
    tools: list[list[Any] | None] | None = None,
    begin: str | None = None,
) -> list[dict[str, Any]]:
    """Render chats in a child process. A chat that the template refuses is {error}.

    Args:
        template: Jinja.
        chats: the messages of each.
        tokenizer: its special tokens are given to the template by name.
        tools: of each chat; None: no chat has any.
        begin: given to the template in place of the tokenizer's bos_token; None: that token.

    Returns:
        For each chat {texts: [{text, answers: [begin, end] of each}]}. There are several texts if the template writes
        earlier turns otherwise once more follow.

    Raises:
        DataError: the template took too much time or memory, and was ended.
    """
    words = {name: getattr(tokenizer, name) or "" for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    if begin is not None:
        words["bos_token"] = begin
    tools = tools or [None] * len(chats)
    sizes = [sum(len(str(value)) for message in chat for value in message.values()) for chat in chats]
    sizes = [size + (len(json.dumps(given)) if given else 0) for size, given in zip(sizes, tools)]
    most = sum(size * max(1, len(chat) // 2) for size, chat in zip(sizes, chats))  # a text for each answer
    seconds = CPU_SECONDS + len(chats) // 200 + (most >> 18)  # a chat takes a millisecond
    given = {
        "template": template,
        "words": words,
        "chats": chats,
        "tools": tools,
        "seconds": seconds,
        "bytes": MEMORY_LIMIT + 16 * most,
        "text": TEXT_LIMIT + 12 * most + 8192 * len(chats),
    }
    try:
        # -I: the user's PYTHON... variables are ignored. The timeout ends a template that waits without using CPU time.
        return ask_python(["-I", str(SANDBOX_SCRIPT)], "The chat template", given, timeout=60 + 10 * seconds)
    except ChildFailed:
        raise DataError(
            f"The chat template took more than {seconds} s or {MEMORY_LIMIT >> 30} GiB, and was ended. "
            "Set task.format: chatml, llama2 or plain."
        ) from None
