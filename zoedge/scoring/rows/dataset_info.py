"""This module reads LLaMA-Factory's data folders, where dataset_info.json names the file and the columns of each data set.

A recipe names a data set as FOLDER:NAME, several as FOLDER:A,B, and the only one of a folder as FOLDER.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ...errors import DataError, make_printable, suggest_nearest
from ..sources.pointers import check_pointer
from .files import join_parts, parse_json_object, read_rows
from .row import Row

INFO_FILE = "dataset_info.json"
INFO_LIMIT = 1 << 20  # bytes of it
ALPACA_COLUMNS = {  # our field -> the key in `columns` that names its column, and the column's default name
    "instruction": ("prompt", "instruction"),
    "input": ("query", "input"),
    "output": ("response", "output"),
}
SHAREGPT_TAGS = {  # our role -> the key in `tags` that names it, and its default name
    "user": ("user_tag", "human"),
    "assistant": ("assistant_tag", "gpt"),
    "system": ("system_tag", "system"),
    "tool": ("observation_tag", "observation"),
    "function_call": ("function_tag", "function_call"),
}
REMOTE_KEYS = ("hf_hub_url", "ms_hub_url", "om_hub_url", "cloud_file_name", "script_url")
UNSUPPORTED_COLUMNS = ("images", "videos", "audios", "chosen", "rejected", "kto_tag")  # zoedge trains on none of these


def find_data_folder(source: str) -> Path | None:
    """Return the folder that a source names, if it has a dataset_info.json; else None."""
    folder = Path(os.path.expanduser(source.partition(":")[0]))
    is_saved = (folder / "state.json").is_file() or (
        folder / "dataset_dict.json"
    ).is_file()  # by datasets' save_to_disk
    return folder if (folder / INFO_FILE).is_file() and not is_saved else None


def load_data_sets(source: str, folder: Path, skip_bad: bool = False) -> tuple[list[Row], list[str]]:
    """Return the rows of the data sets that a source names, with zoedge's names of fields, and the faults of bad lines.

    skip_bad: leave lines out that are not valid. DataError: a data set is unknown, elsewhere, or not valid.
    """
    folder_name, _, names_text = source.partition(":")
    info_name = f"{folder_name}/{INFO_FILE}"
    table = read_dataset_info(folder / INFO_FILE, info_name)
    local = [name for name, entry in table.items() if isinstance(entry, dict) and "file_name" in entry]
    names = [name for name in names_text.split(",") if name]
    if not names and len(local) == 1:
        names = local
    if not names:
        shown = ", ".join(map(make_printable, local[:20])) or "none with a file_name"
        raise DataError(
            f"{info_name} describes: {shown}. Name one (or several): "
            f"{make_printable(source)}:{make_printable((local or ['NAME'])[0])}."
        )
    parts = []
    for name in names:
        if name not in table:
            raise DataError(f"{info_name}: no data set '{make_printable(name)}'{suggest_nearest(name, table) or '.'}")
        where = f"{info_name}: {make_printable(name)}"
        parts.append(read_entry_rows(table[name], where, folder, folder_name, skip_bad))
    return join_parts(parts)


def read_dataset_info(path: Path, name: str) -> dict[str, Any]:
    """Return the content of dataset_info.json. name: what messages call it. DataError: it is no JSON object, or too large."""
    check_pointer(path, name)
    with path.open("rb") as file:
        raw = file.read(INFO_LIMIT + 1)
    table = parse_json_object(raw) if len(raw) <= INFO_LIMIT else "larger than 1 MiB"
    if isinstance(table, str):
        raise DataError(f"{name}: {table}.")
    return table


def read_entry_rows(entry: object, where: str, folder: Path, name: str, skip_bad: bool) -> tuple[list[Row], list[str]]:
    """Return the rows of one data set with zoedge's names of fields, and the faults of bad lines.

    Args:
        entry: its description in dataset_info.json.
        where: how messages name the description.
        folder: the folder of dataset_info.json.
        name: how messages name the folder.
        skip_bad: leave lines out that are not valid.

    Raises:
        DataError: the description or the file is not valid, or zoedge cannot train on the data set.
    """
    entry = entry if isinstance(entry, dict) else {}
    columns, tags = entry.get("columns") or {}, entry.get("tags") or {}
    if not all(isinstance(value, str) for table in (columns, tags) for value in table.values()):
        raise DataError(f"{where}: columns and tags are tables of names.")
    remote = [key for key in REMOTE_KEYS if entry.get(key)]
    if remote:
        raise DataError(
            f"{where}: lies elsewhere ({remote[0]}). Put its file here, or name a hub id, ORG/SET, in data.train."
        )
    unsupported = ["rankings"] if entry.get("ranking") else [key for key in UNSUPPORTED_COLUMNS if columns.get(key)]
    if unsupported:
        raise DataError(f"{where}: {', '.join(unsupported)}: only texts and answers are trained on.")
    formatting = entry.get("formatting", "alpaca")
    if formatting not in ("alpaca", "sharegpt", "openai"):
        raise DataError(f"{where}: formatting '{make_printable(str(formatting))}' is not alpaca, sharegpt or openai.")
    file = entry.get("file_name")
    if not isinstance(file, str) or not (folder / file).exists():
        raise DataError(f"{where}: no file '{make_printable(str(file))}' in {make_printable(name)}.")
    rows, faults = read_data_files(folder / file, f"{name}/{file}", skip_bad)
    if formatting == "alpaca":
        return rename_alpaca_columns(rows, columns), faults
    return [rename_turns(row, columns, tags, formatting == "openai") for row in rows], faults


def read_data_files(path: Path, name: str, skip_bad: bool) -> tuple[list[Row], list[str]]:
    """Return the rows and faults of a file, or of all files in a folder."""
    if not path.is_dir():
        return read_rows(path, name, skip_bad)
    files = [file for file in sorted(path.iterdir()) if file.is_file()]
    return join_parts([read_rows(file, f"{name}/{file.name}", skip_bad) for file in files])


def rename_alpaca_columns(rows: list[Row], columns: dict[str, str]) -> list[Row]:
    """Return rows in Alpaca's format with our names of fields; rows without answers become plain text, {text}."""
    renamed = {ours: columns.get(key, default) for ours, (key, default) in ALPACA_COLUMNS.items()}
    # LLaMA-Factory's sets for pre-training have a prompt only
    if not any(renamed["output"] in row.fields for row in rows):
        return [Row(row.where, {"text": row.fields.get(renamed["instruction"])}) for row in rows]
    renamed |= {key: columns[key] for key in ("system", "history", "tools") if key in columns}
    return [
        Row(row.where, {ours: row.fields[theirs] for ours, theirs in renamed.items() if theirs in row.fields})
        for row in rows
    ]


def rename_turns(row: Row, columns: dict[str, str], tags: dict[str, str], is_openai: bool) -> Row:
    """Return a row in ShareGPT's or OpenAI's format with the field `messages`, in OpenAI's words.

    Values that are not as expected stay as they are; `parse_turns` refuses them later. DataError: the row has no turns.
    """
    key = columns.get("messages", "messages" if is_openai else "conversations")
    role_key = tags.get("role_tag", "role" if is_openai else "from")
    content_key = tags.get("content_tag", "content" if is_openai else "value")
    roles = {tags.get(tag, ours if is_openai else theirs): ours for ours, (tag, theirs) in SHAREGPT_TAGS.items()}
    if key not in row.fields:
        raise DataError(
            f'{row.where}: field "{make_printable(key)}": missing. It has: {", ".join(map(make_printable, row.fields))}.'
        )
    chat = row.fields[key]
    if isinstance(chat, list) and all(isinstance(turn, dict) for turn in chat):
        messages = []
        for turn in chat:
            speaker = turn.get(role_key)
            role = roles.get(speaker, speaker) if isinstance(speaker, str) else speaker
            messages.append({**turn, "role": role, "content": turn.get(content_key)})
        chat = messages
    more: dict[str, Any] = {ours: row.fields.get(columns[ours]) for ours in ("system", "tools") if ours in columns}
    return Row(row.where, {"messages": chat, **more})
