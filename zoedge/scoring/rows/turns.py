"""This module reads the turns of a conversation: roles, texts, reasoning, calls of tools, and what is not trained on."""

from __future__ import annotations

import json
from typing import Any

from ...errors import DataError, make_printable
from .row import Row

# A message as chat templates take it: role and content, and of some turns reasoning_content or tool_calls. TRAIN is ours.
Message = dict[str, Any]

TRAIN = "train"  # of an answer that is not trained on: False. Templates do not see it
OPENAI_ROLES = {role: role for role in ("system", "user", "assistant")} | {"developer": "system"}
SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
TOOL_ROLES = dict.fromkeys(("tool", "function", "observation", "ipython"), "tool") | {"function_call": "assistant"}
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")  # of a turn, in the order of preference
MEDIA_KEYS = ("image", "images", "audio", "audios", "video", "videos")
TRAIN_KEYS = ("weight", "train", "training")  # in OpenAI's and other tools' words: 0 and false are not trained on


def make_message(role: str, text: str) -> Message:
    """Return a message as chat templates take it. role: system, user, assistant or tool."""
    return {"role": role, "content": text}


def is_absent(value: object) -> bool:
    """Return whether a field holds nothing: it is missing, null, or an empty text, list or table. 0 and false are values."""
    return value is None or (isinstance(value, (str, list, dict)) and not value) or value == "[]"


def check_media(fields: dict[str, Any], where: str) -> None:
    """Raise DataError if a row or a turn has pictures, sound or films, of which a text would keep the word alone."""
    if key := next((key for key in MEDIA_KEYS if not is_absent(fields.get(key))), ""):
        raise DataError(f"{where}: it has {key}, and only texts are trained on. Leave the row out.")


def parse_turns(row: Row, field: str) -> list[Message]:
    """Return a field that is a list of turns, each with a role and a text, as messages.

    Most fields have OpenAI's words (role, content), and `conversations` has ShareGPT's (from, value). Either may have the
    other's in every turn. DataError: a turn is not valid, or is one that zoedge does not train on.
    """
    turns = row.fields[field]
    are_tables = isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns)
    words_of_other = "role" if field == "conversations" else "from"
    has_words_of_other = are_tables and bool(turns) and all(words_of_other in turn for turn in turns)
    is_sharegpt = (field == "conversations") != has_words_of_other
    role, content = ("from", "value") if is_sharegpt else ("role", "content")
    if not are_tables:
        raise DataError(f'{row.where}: field "{field}": not a list of {{{role}, {content}}}.')
    roles = SHAREGPT_ROLES if is_sharegpt else OPENAI_ROLES
    chat = []
    for i, turn in enumerate(turns, 1):
        where = f"{row.where}: {field}, turn {i}"
        speaker = turn.get(role)
        if not isinstance(speaker, str) or speaker not in roles | TOOL_ROLES:
            raise DataError(f'{where}: {role} "{make_printable(str(speaker))}" is not one of {", ".join(roles)}.')
        check_media(turn, where)
        if speaker == "function_call":
            chat.append(parse_function_call(turn.get(content), where))
        else:
            chat.append(parse_turn(turn, (roles | TOOL_ROLES)[speaker], content, where))
    return chat


def parse_turn(turn: dict[str, Any], role: str, content: str, where: str) -> Message:
    """Return one turn as a message. content: its text's key. where: begins a message about it. DataError: it is not valid."""
    text = turn.get(content)
    calls = parse_tool_calls(turn.get("tool_calls"), where) if role == "assistant" else []
    if isinstance(text, list):
        text = join_content_parts(text, where)
    if text is None and calls:
        text = ""
    if not isinstance(text, str) or not (text.strip() or calls):
        raise DataError(f"{where}: {content} is missing, empty or not a text.")
    message = make_message(role, text)
    if calls:
        message["tool_calls"] = calls
    reasoning = next((turn[key] for key in REASONING_KEYS if not is_absent(turn.get(key))), None)
    if reasoning is not None:
        if role != "assistant" or not isinstance(reasoning, str):
            raise DataError(f"{where}: reasoning is a text, of an answer of the assistant's.")
        message["reasoning_content"] = reasoning
    for key in ("name", "tool_call_id") if role == "tool" else ():
        if isinstance(turn.get(key), str):
            message[key] = turn[key]
    if role == "assistant" and not is_trained(turn, where):
        message[TRAIN] = False
    return message


def is_trained(turn: dict[str, Any], where: str) -> bool:
    """Return whether an answer is trained on, as its weight, train or training says. DataError: a weight between 0 and 1."""
    for key in TRAIN_KEYS:
        value = turn.get(key)
        if value is not None and value not in (0, 1):
            raise DataError(
                f"{where}: {key} is {make_printable(str(value))}; an answer is trained on (1, true) or not (0, false)."
            )
        if value is not None and not value:
            return False
    return True


def join_content_parts(parts: list[Any], where: str) -> str:
    """Return the content of a message in OpenAI's parts as one text. DataError: a part is no text."""
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else part
            raise DataError(
                f'{where}: a part of its content is "{make_printable(str(kind))}", and only texts are trained on.'
            )
    return "".join(part["text"] for part in parts)


# -- tools


def parse_json_text(value: object) -> object:
    """Return what a text holds as JSON, or the value itself if it is no text or no JSON."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def parse_tools(row: Row) -> list[Any] | None:
    """Return the tools of a row, {type, function} each, which may stand there as JSON in a text; None: it has none.

    DataError: they are no list of tables with a name each.
    """
    if is_absent(row.fields.get("tools")):
        return None
    tools = parse_json_text(row.fields["tools"])
    if is_absent(tools):
        return None
    wrapped = []
    for tool in tools if isinstance(tools, list) else [None]:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(f'{row.where}: field "tools": not a list of functions with a name each.')
        wrapped.append(
            tool if isinstance(tool, dict) and "function" in tool else {"type": "function", "function": tool}
        )
    return wrapped


def parse_tool_calls(value: object, where: str) -> list[Message]:
    """Return the calls of an answer, with their arguments as tables, which OpenAI writes as JSON in a text."""
    if is_absent(value):
        return []
    calls = []
    for call in value if isinstance(value, list) else [None]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(f"{where}: tool_calls: not a list of calls with a name each.")
        arguments = parse_json_text(function.get("arguments", {}))
        more = {"id": call["id"]} if isinstance(call, dict) and "id" in call else {}
        calls.append(more | {"type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return calls


def parse_function_call(value: object, where: str) -> Message:
    """Return ShareGPT's turn function_call, {name, arguments} as JSON in a text, as an answer with a call of a tool."""
    call = parse_json_text(value)
    return make_message("assistant", "") | {
        "tool_calls": parse_tool_calls(call if isinstance(call, list) else [call], where)
    }
