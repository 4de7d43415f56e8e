"""This module has the formats of rows in other tools' data: conversations in four formats, and plain text.

The keys of each row decide its format, never the first row alone. Where rows have the keys of two formats, the recipe's
data.format decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import DataError, make_printable
from .row import Row, describe_keys, file_of_rows, raise_faults, read_field_text

FORMAT_KEYS = {  # data.format -> the fields that a row of this format must have
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "completions": ("prompt", "completion"),
    "text": ("text",),
}
CHAT_FORMATS = tuple(FORMAT_KEYS)[:4]
OPTIONAL_KEYS = {  # data.format -> the fields that it may have besides
    "messages": ("system", "tools"),
    "sharegpt": ("system", "tools"),
    "alpaca": ("input", "system", "history", "tools"),
    "completions": (),
}
OPENAI_ROLES = {role: role for role in ("system", "user", "assistant")}
SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
TOOL_ROLES = ("tool", "function", "function_call", "observation", "ipython")  # roles of a conversation with tools
# likely names of fields that hold questions and answers, the likeliest first
QUESTION_NAMES = ("question", "query", "instruction", "input", "user", "prompt", "source")
ANSWER_NAMES = ("answer", "response", "output", "reply", "completion", "target", "assistant")
Message = dict[str, str]


def make_message(role: str, text: str) -> Message:
    """Return a message as chat templates take it. role: system, user or assistant."""
    return {"role": role, "content": text}


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
    faults = []
    for row in rows:
        if absent := [key for key in FORMAT_KEYS[kind] if key not in row.fields]:
            has = ", ".join(map(make_printable, row.fields))
            faults.append(DataError(f"{row.where}: not {kind}: no {absent[0]} (data.format). It has: {has}."))
    raise_faults(faults)
    known = (*FORMAT_KEYS[kind], *OPTIONAL_KEYS[kind])
    return [Row(row.where, {key: row.fields[key] for key in known if key in row.fields}) for row in rows]


def rows_to_chats(rows: list[Row]) -> list[list[Message]]:
    """Return each row as messages. DataError names every row that is no valid conversation, with its line."""
    if not any(matching_formats(row) for row in rows):
        raise DataError(describe_unknown(rows))
    chats, faults = [], []
    for row in rows:
        try:
            chats.append(row_to_messages(row))
        except DataError as e:
            faults.append(e)
    raise_faults(faults)
    return chats


def describe_unknown(rows: list[Row]) -> str:
    """Return the message for rows of which none is a conversation, with a guess at data.fields."""
    if all("text" in row.fields and "label" not in row.fields for row in rows):
        return f"{file_of_rows(rows)}: plain text ({{text}}), and the task is chat. Set task: lm."
    known = " | ".join(",".join(keys) for keys in FORMAT_KEYS.values())
    keys, keys_shown = describe_keys(rows)
    texts = [key for key in keys if any(isinstance(row.fields.get(key), str) for row in rows)]
    question = guess_key(texts, QUESTION_NAMES)
    answer = guess_key([key for key in texts if key != question], ANSWER_NAMES)
    return (
        f"{file_of_rows(rows)}: cannot tell the format. {keys_shown}. Known: {known}. "
        f"Add data.fields: {{prompt: {make_printable(question)}, completion: {make_printable(answer)}}}."
    )


def guess_key(keys: list[str], names: Sequence[str]) -> str:
    """Return the key that contains the likeliest of these names, else the first key, or "..." if there is none."""
    for name in names:
        for key in keys:
            if name in key.lower():
                return key
    return keys[0] if keys else "..."


# -- a row as messages


def row_to_messages(row: Row) -> list[Message]:
    """Return a row of any of the four formats as messages.

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
    if kind == "completions":
        return [
            make_message("user", read_field_text(row, "prompt")),
            make_message("assistant", read_field_text(row, "completion")),
        ]
    if fields.get("tools") not in (None, "", "[]", [], {}):
        raise DataError(f"{row.where}: it has tools, and calls of tools are not trained on. Leave the row out.")
    if kind == "alpaca":
        question = read_field_text(row, "instruction")
        if fields.get("input"):
            question += f"\n\n{read_field_text(row, 'input')}"
        chat = [
            *parse_history(row),
            make_message("user", question),
            make_message("assistant", read_field_text(row, "output")),
        ]
    else:
        chat = parse_turns(row, FORMAT_KEYS[kind][0])
    if fields.get("system"):
        chat = [make_message("system", read_field_text(row, "system")), *chat]
    return check_turn_order(row, chat)


def parse_history(row: Row) -> list[Message]:
    """Return the earlier rounds of a row of LLaMA-Factory, a list of [question, answer], as messages."""
    history = row.fields.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        raise DataError(f'{row.where}: field "history": not a list of [question, answer].')
    chat = []
    for i, pair in enumerate(history, 1):
        for role, text in zip(("user", "assistant"), pair):
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"{row.where}: history, round {i}: a text is missing, empty or not a text.")
            chat.append(make_message(role, text))
    return chat


def parse_turns(row: Row, field: str) -> list[Message]:
    """Return a field that is a list of turns, each with a role and a text, as messages.

    `messages` usually has OpenAI's words (role, content), and `conversations` ShareGPT's (from, value). Either may have the
    other's in every turn. DataError: a turn is not valid, or is one that zoedge does not train on.
    """
    turns = row.fields[field]
    are_tables = isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns)
    words_of_other = "from" if field == "messages" else "role"
    has_words_of_other = are_tables and bool(turns) and all(words_of_other in turn for turn in turns)
    is_sharegpt = (field == "conversations") != has_words_of_other
    role, content, roles = ("from", "value", SHAREGPT_ROLES) if is_sharegpt else ("role", "content", OPENAI_ROLES)
    if not are_tables:
        raise DataError(f'{row.where}: field "{field}": not a list of {{{role}, {content}}}.')
    chat = []
    for i, turn in enumerate(turns, 1):
        where = f"{row.where}: {field}, turn {i}"
        speaker, text = turn.get(role), turn.get(content)
        if speaker in TOOL_ROLES or turn.get("tool_calls"):
            raise DataError(f"{where}: a call of a tool or its result, which is not trained on. Leave the row out.")
        if not isinstance(speaker, str) or speaker not in roles:
            raise DataError(f'{where}: {role} "{make_printable(str(speaker))}" is not one of {", ".join(roles)}.')
        for key, off in (("weight", 0), ("train", False), ("training", False)):
            if key in turn and turn[key] == off and turn[key] is not None and roles[speaker] == "assistant":
                raise DataError(
                    f"{where}: {key} is {make_printable(str(turn[key]))}, and every answer is scored here. End the row before."
                )
        if isinstance(text, list):
            text = join_content_parts(text, where)
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: {content} is missing, empty or not a text.")
        chat.append(make_message(roles[speaker], text))
    return chat


def join_content_parts(parts: list[Any], where: str) -> str:
    """Return the content of a message in OpenAI's parts as one text. DataError: a part is no text."""
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else part
            raise DataError(
                f'{where}: a part of its content is "{make_printable(str(kind))}", and only texts are trained on.'
            )
    return "".join(part["text"] for part in parts)


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
    if roles[roles[0] == "system"] == "assistant":
        raise DataError(f"{row.where}: the assistant speaks first, so that nothing asks for its answer.")
    return chat
