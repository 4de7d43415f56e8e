"""What a row of another tool's data is: conversations in four formats, and plain text.

Which format a row has is told by its keys, row by row, never by the first row alone; `data.format` says it where rows have
the keys of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import DataError, make_printable
from .row import Row, describe_keys, file_of_rows, raise_faults, read_field_text

FORMAT_KEYS = {  # data.format -> the fields that make a row one
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "completions": ("prompt", "completion"),
    "text": ("text",),
}
CHAT_FORMATS = tuple(FORMAT_KEYS)[:4]
OPTIONAL_KEYS = {  # what else is read of a row
    "messages": ("system", "tools"),
    "sharegpt": ("system", "tools"),
    "alpaca": ("input", "system", "history", "tools"),
    "completions": (),
}
OPENAI_ROLES = {role: role for role in ("system", "user", "assistant")}
SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
TOOL_ROLES = ("tool", "function", "function_call", "observation", "ipython")  # roles of those that call tools
QUESTION_NAMES = (
    "question",
    "query",
    "instruction",
    "input",
    "user",
    "prompt",
    "source",
)  # likely names of what is asked
ANSWER_NAMES = ("answer", "response", "output", "reply", "completion", "target", "assistant")
Message = dict[str, str]


def make_message(role: str, text: str) -> Message:
    return {"role": role, "content": text}


# -- which format


def matching_formats(row: Row, among: Sequence[str] = CHAT_FORMATS) -> list[str]:
    """The formats all of whose keys a row has; where there is none, those whose first key it has."""
    whole = [kind for kind in among if all(key in row.fields for key in FORMAT_KEYS[kind])]
    return whole or [kind for kind in among if FORMAT_KEYS[kind][0] in row.fields]


def find_chat_formats(rows: list[Row]) -> str:
    """The formats of conversations that rows are in, if every row is in one."""
    found = [[k for k in CHAT_FORMATS if all(key in row.fields for key in FORMAT_KEYS[k])] for row in rows]
    return " or ".join(k for k in CHAT_FORMATS if any(k in some for some in found)) if all(found) else ""


def select_format(rows: list[Row], kind: str) -> list[Row]:
    """The rows with the fields of one format alone. DataError: a row that is not of it."""
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
    """Every row as messages. DataError: all that are none, each with its line."""
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
    """What to say of rows of which none is a conversation."""
    if all("text" in row.fields and "label" not in row.fields for row in rows):
        return f"{file_of_rows(rows)}: plain text ({{text}}), and the task is chat. Set task: lm."
    known = " | ".join(",".join(keys) for keys in FORMAT_KEYS.values())
    seen, shown = describe_keys(rows)
    texts = [key for key in seen if any(isinstance(row.fields.get(key), str) for row in rows)]
    ask = next((key for word in QUESTION_NAMES for key in texts if word in key.lower()), None) or next(
        iter(texts), "..."
    )
    rest = [key for key in texts if key != ask]
    say = next((key for word in ANSWER_NAMES for key in rest if word in key.lower()), None) or next(iter(rest), "...")
    return (
        f"{file_of_rows(rows)}: cannot tell the format. {shown}. Known: {known}. "
        f"Add data.fields: {{prompt: {make_printable(ask)}, completion: {make_printable(say)}}}."
    )


# -- a row as messages


def row_to_messages(row: Row) -> list[Message]:
    """A row of any of the four formats as messages. DataError: it is none or two of them, or cannot be trained on."""
    fields, found = row.fields, matching_formats(row)
    if not found:
        raise DataError(
            f"{row.where}: no conversation: messages, conversations, instruction and output, or prompt and completion. "
            f"It has: {', '.join(map(make_printable, fields))}."
        )
    if len(found) > 1:
        raise DataError(f"{row.where}: {' and '.join(found)} at once. Say which: data.format: {' | '.join(found)}.")
    (kind,) = found
    if kind == "completions":
        return [
            make_message("user", read_field_text(row, "prompt")),
            make_message("assistant", read_field_text(row, "completion")),
        ]
    if fields.get("tools") not in (None, "", "[]", [], {}):
        raise DataError(f"{row.where}: it has tools, and calls of tools are not trained on. Leave the row out.")
    if kind == "alpaca":
        more = f"\n\n{read_field_text(row, 'input')}" if fields.get("input") else ""
        chat = [
            *parse_history(row),
            make_message("user", read_field_text(row, "instruction") + more),
            make_message("assistant", read_field_text(row, "output")),
        ]
    else:
        chat = parse_turns(row, FORMAT_KEYS[kind][0])
    if fields.get("system"):
        chat = [make_message("system", read_field_text(row, "system")), *chat]
    return check_turn_order(row, chat)


def parse_history(row: Row) -> list[Message]:
    """LLaMA-Factory's earlier rounds: a list of [question, answer]."""
    found = row.fields.get("history") or []
    if not isinstance(found, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in found):
        raise DataError(f'{row.where}: field "history": not a list of [question, answer].')
    chat = []
    for i, pair in enumerate(found, 1):
        for role, text in zip(("user", "assistant"), pair):
            if not isinstance(text, str) or not text.strip():
                raise DataError(f"{row.where}: history, round {i}: a text is missing, empty or not a text.")
            chat.append(make_message(role, text))
    return chat


def parse_turns(row: Row, field: str) -> list[Message]:
    """The messages in a list field of tables with a role and a text, in OpenAI's words or ShareGPT's."""
    found = row.fields[field]
    tables = isinstance(found, list) and all(isinstance(turn, dict) for turn in found)
    other = "from" if field == "messages" else "role"
    there = tables and found and all(other in turn for turn in found)
    shares = (field == "conversations") != bool(there)
    role, content, roles = ("from", "value", SHAREGPT_ROLES) if shares else ("role", "content", OPENAI_ROLES)
    if not tables:
        raise DataError(f'{row.where}: field "{field}": not a list of {{{role}, {content}}}.')
    chat = []
    for i, turn in enumerate(found, 1):
        here = f"{row.where}: {field}, turn {i}"
        speaker, text = turn.get(role), turn.get(content)
        if speaker in TOOL_ROLES or turn.get("tool_calls"):
            raise DataError(f"{here}: a call of a tool or its result, which is not trained on. Leave the row out.")
        if not isinstance(speaker, str) or speaker not in roles:
            raise DataError(f'{here}: {role} "{make_printable(str(speaker))}" is not one of {", ".join(roles)}.')
        for key, off in (("weight", 0), ("train", False), ("training", False)):
            if key in turn and turn[key] == off and turn[key] is not None and roles[speaker] == "assistant":
                raise DataError(
                    f"{here}: {key} is {make_printable(str(turn[key]))}, and every answer is scored here. End the row before."
                )
        if isinstance(text, list):
            text = join_content_parts(text, here)
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{here}: {content} is missing, empty or not a text.")
        chat.append(make_message(roles[speaker], text))
    return chat


def join_content_parts(parts: list[Any], here: str) -> str:
    """OpenAI's content in parts as one text. DataError: one of them is none."""
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else part
            raise DataError(
                f'{here}: a part of its content is "{make_printable(str(kind))}", and only texts are trained on.'
            )
    return "".join(part["text"] for part in parts)


def check_turn_order(row: Row, chat: list[Message]) -> list[Message]:
    """The chat, if it has an answer, and begins as one: whether turns must alternate is the template's to say."""
    roles = [message["role"] for message in chat]
    if "system" in roles[1:]:
        twice = " The row has two." if roles.count("system") > 1 else ""
        raise DataError(f"{row.where}: a system message must stand first.{twice}")
    if "assistant" not in roles:
        raise DataError(f"{row.where}: no answer of the assistant's.")
    if roles[roles[0] == "system"] == "assistant":
        raise DataError(f"{row.where}: the assistant speaks first, so that nothing asks for its answer.")
    return chat
