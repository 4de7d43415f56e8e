"""This module has the formats of rows in other tools' data: conversations in five formats, and plain text.

The keys of each row decide its format, never the first row alone. Where rows have the keys of two formats, the recipe's
data.format decides. Every part of a row that is a part of a conversation is used, or the row is refused with its line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import DataError, make_printable
from .row import Row, describe_keys, file_of_rows, raise_faults, read_field_text, value_as_text
from .turns import REASONING_KEYS, TRAIN, Message, check_media, is_absent, make_message, parse_tools, parse_turns

FORMAT_KEYS = {  # data.format -> the fields that a row of this format must have
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "completions": ("prompt", "completion"),
    "segments": ("segments",),
    "text": ("text",),
}
CHAT_FORMATS = tuple(FORMAT_KEYS)[:5]
SHARED_KEYS = ("system", "system_prompt", "history", "tools")
OPTIONAL_KEYS = {  # data.format -> the fields that it may have besides
    "messages": SHARED_KEYS,
    "sharegpt": SHARED_KEYS,
    "alpaca": ("input", *SHARED_KEYS, *REASONING_KEYS[:2]),
    "completions": (*SHARED_KEYS, *REASONING_KEYS[:2]),
    "segments": (),
}
CHAT_FIELDS = tuple(dict.fromkeys(key for kind in CHAT_FORMATS for key in (*FORMAT_KEYS[kind], *OPTIONAL_KEYS[kind])))
# likely names of fields that hold questions and answers, the likeliest first
QUESTION_NAMES = ("question", "query", "instruction", "input", "user", "prompt", "source")
ANSWER_NAMES = ("answer", "response", "output", "reply", "completion", "target", "assistant")


# -- which format


def matching_formats(row: Row, among: Sequence[str] = CHAT_FORMATS) -> list[str]:
    """Return the formats all of whose keys a row has; if there are none, those whose first key it has."""
    complete = [kind for kind in among if has_all_keys(row, kind)]
    return complete or [kind for kind in among if FORMAT_KEYS[kind][0] in row.fields]


def has_all_keys(row: Row, kind: str) -> bool:
    """Return whether a row has all fields that rows of this format must have."""
    return all(key in row.fields for key in FORMAT_KEYS[kind])


def find_chat_formats(rows: list[Row]) -> str:
    """Return the formats of conversations that the rows have, joined by "or"; "" if a row has none of them."""
    by_row = [[kind for kind in CHAT_FORMATS if has_all_keys(row, kind)] for row in rows]
    if not all(by_row):
        return ""
    present = {kind for kinds in by_row for kind in kinds}
    return " or ".join(kind for kind in CHAT_FORMATS if kind in present)


def select_format(rows: list[Row], kind: str) -> list[Row]:
    """Return the rows with the fields of one format alone. Formats of no conversation change nothing.

    kind: the recipe's data.format. DataError: a row lacks a field of the format.
    """
    if kind not in OPTIONAL_KEYS:
        return rows
    faults: dict[str, DataError] = {}
    for row in rows:
        if absent := [key for key in FORMAT_KEYS[kind] if key not in row.fields]:
            has = ", ".join(map(make_printable, row.fields))
            faults[row.where] = DataError(f"{row.where}: not {kind}: no {absent[0]} (data.format). It has: {has}.")
    raise_faults(faults)
    known = (*FORMAT_KEYS[kind], *OPTIONAL_KEYS[kind])
    return [Row(row.where, {key: row.fields[key] for key in known if key in row.fields}) for row in rows]


def rows_to_chats(rows: list[Row]) -> list[list[Message]]:
    """Return each row as messages. DataError names every row that is no valid conversation, with its line."""
    if not any(has_all_keys(row, kind) for row in rows for kind in CHAT_FORMATS):
        raise DataError(describe_unknown(rows))
    chats: list[list[Message]] = []
    faults: dict[str, DataError] = {}
    for row in rows:
        try:
            chats.append(row_to_messages(row))
        except DataError as e:
            faults[row.where] = e
    raise_faults(faults)
    return chats


def is_preference(row: Row) -> bool:
    """Return whether a row is a question with a better and a worse answer, and nothing that is trained on."""
    return {"chosen", "rejected"} <= row.fields.keys() and not any(has_all_keys(row, kind) for kind in CHAT_FORMATS)


def describe_unknown(rows: list[Row]) -> str:
    """Return the message for rows of which none is a conversation, with a guess at data.fields."""
    if all("text" in row.fields and "label" not in row.fields for row in rows):
        return f"{file_of_rows(rows)}: plain text ({{text}}), and the task is chat. Set task: lm."
    known = " | ".join(",".join(keys) for keys in FORMAT_KEYS.values())
    keys, keys_shown = describe_keys(rows)
    if all(is_preference(row) for row in rows):
        return (
            f"{file_of_rows(rows)}: its rows are preferences (chosen, rejected), and answers are trained on. "
            "data.fields: {completion: chosen} trains on the chosen ones alone."
        )
    texts = [key for key in keys if any(isinstance(row.fields.get(key), str) for row in rows)]
    question = guess_key(texts, QUESTION_NAMES)
    answer = guess_key([key for key in texts if key != question], ANSWER_NAMES)
    names = {"prompt": question, "completion": answer}
    if context := next((key for key in ("context", "input") if key in texts and key not in (question, answer)), ""):
        names = {"instruction": question, "input": context, "output": answer}  # as Dolly has it
    shown = ", ".join(f"{ours}: {make_printable(theirs)}" for ours, theirs in names.items() if ours != theirs)
    return f"{file_of_rows(rows)}: cannot tell the format. {keys_shown}. Known: {known}. Add data.fields: {{{shown}}}."


def guess_key(keys: list[str], names: Sequence[str]) -> str:
    """Return the key that contains the likeliest of these names, else the first key, or "..." if there is none."""
    for name in names:
        for key in keys:
            if name in key.lower():
                return key
    return keys[0] if keys else "..."


# -- a row as messages


def row_to_messages(row: Row) -> list[Message]:
    """Return a row of any of the formats as messages; of segments, none.

    DataError: it has none of the formats, or two, or it is a conversation that zoedge does not train on.
    """
    fields, kinds = row.fields, matching_formats(row)
    if not kinds:
        raise DataError(
            f"{row.where}: no conversation: messages, conversations, instruction and output, or prompt and completion. "
            f"It has: {', '.join(map(make_printable, fields))}."
        )
    if len(kinds) > 1:
        raise DataError(f"{row.where}: {' and '.join(kinds)} at once. Say which: data.format: {' | '.join(kinds)}.")
    (kind,) = kinds
    check_media(fields, row.where)
    check_label(row)
    parse_tools(row)
    if kind == "segments":
        parse_segments(row)
        return []
    if kind in ("alpaca", "completions"):
        chat = parse_pair(row, kind)
    else:
        if refused := [key for key in ("chosen", "rejected") if not is_absent(fields.get(key))]:
            raise DataError(
                f"{row.where}: it has {refused[0]}, a preference, and answers are trained on. Leave it out."
            )
        chat = parse_turns(row, FORMAT_KEYS[kind][0])
    systems = [key for key in ("system", "system_prompt") if not is_absent(fields.get(key))]
    if len(systems) > 1 and fields["system"] != fields["system_prompt"]:  # data.fields may have named one the other
        raise DataError(f"{row.where}: it has system and system_prompt. Keep one.")
    chat = [*parse_history(row), *chat]
    if systems:
        chat = [make_message("system", read_field_text(row, systems[0])), *chat]
    return check_turn_order(row, chat)


def parse_pair(row: Row, kind: str) -> list[Message]:
    """Return the question and the answer of a row as messages; of completions, each may be a list of turns (TRL).

    In such a list, answers of the prompt are not trained on. kind: alpaca or completions.
    """
    question, answer = FORMAT_KEYS[kind]
    if kind == "completions" and (
        isinstance(row.fields.get(question), list) or isinstance(row.fields.get(answer), list)
    ):
        pair = []
        for key in (question, answer):
            value = row.fields.get(key)
            role = "user" if key == question else "assistant"
            turns = (
                [make_message(role, value)] if isinstance(value, str) else [value] if isinstance(value, dict) else value
            )
            pair.append(parse_turns(Row(row.where, {key: turns}), key))
        if not all(message["role"] in ("assistant", "tool") for message in pair[1]):
            raise DataError(f'{row.where}: field "completion": a turn of it is not the assistant\'s.')
        asked = [message | {TRAIN: False} if message["role"] == "assistant" else message for message in pair[0]]
        return [*asked, *pair[1]]
    text = read_field_text(row, question)
    if not is_absent(row.fields.get("input")):
        if kind == "completions" and row.fields["input"] not in (row.fields[question], row.fields[answer]):
            raise DataError(
                f"{row.where}: it has input beside prompt and completion. Add data.fields: {{instruction: prompt, "
                "output: completion}, and data.format: alpaca."
            )
        text += f"\n\n{read_field_text(row, 'input')}" if kind == "alpaca" else ""
    reply = make_message("assistant", read_field_text(row, answer))
    for key in REASONING_KEYS[:2]:
        if not is_absent(row.fields.get(key)):
            reply.setdefault("reasoning_content", read_field_text(row, key))
    return [make_message("user", text), reply]


def check_label(row: Row) -> None:
    """Raise DataError if the row says that its answer is a bad one, as KTO's rows do."""
    for key in ("label", "kto_tag"):
        if key in row.fields and value_as_text(row.fields[key]).casefold() == "false":
            raise DataError(
                f"{row.where}: {key} is false: a bad answer, which must not be trained on. Leave such rows out: "
                f"data.without: {{{key}: '{make_printable(value_as_text(row.fields[key]))}'}}."
            )


def parse_segments(row: Row) -> list[tuple[str, bool]]:
    """Return the pieces of a row of segments, {text, label} each, and whether each is trained on (axolotl's input_output).

    DataError: it is no such list, or no piece is trained on.
    """
    pieces = row.fields["segments"]
    are_pieces = isinstance(pieces, list) and all(
        isinstance(piece, dict) and isinstance(piece.get("text"), str) and isinstance(piece.get("label"), bool)
        for piece in pieces
    )
    if not are_pieces:
        raise DataError(f'{row.where}: field "segments": not a list of {{text, label}}, where label is true or false.')
    if not any(piece["label"] and piece["text"].strip() for piece in pieces):
        raise DataError(f"{row.where}: no segment with a text has the label true.")
    return [(piece["text"], piece["label"]) for piece in pieces]


def describe_chat(row: Row) -> Any:
    """Return what a row of any of the formats is trained on, the same for equal conversations. DataError: it is none."""
    return [row_to_messages(row), parse_tools(row), parse_segments(row) if "segments" in row.fields else None]


def parse_history(row: Row) -> list[Message]:
    """Return the earlier rounds of a row of LLaMA-Factory, a list of [question, answer], as messages."""
    history = [] if is_absent(row.fields.get("history")) else row.fields["history"]
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise DataError(f'{row.where}: field "history": not a list of [question, answer].')
    chat = []
    for i, pair in enumerate(history, 1):
        for role, text in zip(("user", "assistant"), pair):
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"{row.where}: history, round {i}: a text is missing, empty or not a text.")
            chat.append(make_message(role, text))
    return chat


def check_turn_order(row: Row, chat: list[Message]) -> list[Message]:
    """Return the chat unchanged. DataError: it has no answer, a system message that is not first, or begins with an answer.

    Whether turns must alternate is decided by the chat template, and not here.
    """
    roles = [message["role"] for message in chat]
    if "system" in roles[1:]:
        twice = " The row has two." if roles.count("system") > 1 else ""
        raise DataError(f"{row.where}: a system message must stand first.{twice}")
    if "assistant" not in roles:
        raise DataError(f"{row.where}: no answer of the assistant's.")
    if not any(message["role"] == "assistant" and message.get(TRAIN, True) for message in chat):
        raise DataError(f"{row.where}: every answer is marked not to be trained on (weight, train).")
    if roles[roles[0] == "system"] == "assistant":
        raise DataError(f"{row.where}: the assistant speaks first, so that nothing asks for its answer.")
    return chat
