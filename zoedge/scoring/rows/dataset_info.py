"""LLaMA-Factory's data folders: dataset_info.json says which file a data set's name is, and what its columns are called.

FOLDER:NAME (or FOLDER:A,B, one after another) is a source of rows; FOLDER alone, where it describes one local file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ...errors import DataError, make_printable, suggest_nearest
from .files import parse_json_object, read_rows
from .row import Row

INFO_FILE, INFO_LIMIT = "dataset_info.json", 1 << 20
ALPACA_COLUMNS = {
    "instruction": ("prompt", "instruction"),
    "input": ("query", "input"),
    "output": ("response", "output"),
}
SHAREGPT_TAGS = {
    "user": ("user_tag", "human"),
    "assistant": ("assistant_tag", "gpt"),
    "system": ("system_tag", "system"),
    "tool": ("observation_tag", "observation"),
    "function": ("function_tag", "function_call"),
}
REMOTE_KEYS = ("hf_hub_url", "ms_hub_url", "om_hub_url", "cloud_file_name", "script_url")
UNSUPPORTED_COLUMNS = (
    "images",
    "videos",
    "audios",
    "chosen",
    "rejected",
    "kto_tag",
)  # columns of what zoedge does not train on


def find_data_folder(source: str) -> Path | None:
    """The data folder that a source names, if it is one."""
    folder = Path(os.path.expanduser(source.partition(":")[0]))
    return folder if (folder / INFO_FILE).is_file() else None


def load_data_sets(source: str, folder: Path, skip_bad: bool = False) -> tuple[list[Row], list[str]]:
    """(rows, faults) of the data sets that a source names, in zoedge's words. DataError: whatever is wrong with them."""
    told = f"{source.partition(':')[0]}/{INFO_FILE}"
    table = read_dataset_info(folder / INFO_FILE, told)
    local = [name for name, entry in table.items() if isinstance(entry, dict) and "file_name" in entry]
    names = [name for name in source.partition(":")[2].split(",") if name] or (local if len(local) == 1 else [])
    if not names:
        some = ", ".join(map(make_printable, local[:20])) or "none with a file_name"
        raise DataError(
            f"{told} describes: {some}. Name one (or several): "
            f"{make_printable(source)}:{make_printable((local or ['NAME'])[0])}."
        )
    found: list[Row] = []
    faults: list[str] = []
    for name in names:
        if name not in table:
            raise DataError(f"{told}: no data set '{make_printable(name)}'{suggest_nearest(name, table) or '.'}")
        rows, wrong = read_entry_rows(
            table[name], f"{told}: {make_printable(name)}", folder, source.partition(":")[0], skip_bad
        )
        found += rows
        faults += wrong
    return found, faults


def read_dataset_info(path: Path, told: str) -> dict[str, Any]:
    with path.open("rb") as file:
        raw = file.read(INFO_LIMIT + 1)
    table = parse_json_object(raw) if len(raw) <= INFO_LIMIT else "larger than 1 MiB"
    if isinstance(table, str):
        raise DataError(f"{told}: {table}.")
    return table


def read_entry_rows(entry: object, told: str, folder: Path, name: str, skip_bad: bool) -> tuple[list[Row], list[str]]:
    """The rows of one data set, renamed as its description says."""
    entry = entry if isinstance(entry, dict) else {}
    columns, tags = entry.get("columns") or {}, entry.get("tags") or {}
    if not all(isinstance(v, str) for part in (columns, tags) for v in part.values()):
        raise DataError(f"{told}: columns and tags are tables of names.")
    if away := [key for key in REMOTE_KEYS if entry.get(key)]:
        raise DataError(
            f"{told}: lies elsewhere ({away[0]}). Put its file here, or name a hub id, ORG/SET, in data.train."
        )
    if entry.get("ranking") or (odd := [key for key in UNSUPPORTED_COLUMNS if columns.get(key)]):
        what = "rankings" if entry.get("ranking") else ", ".join(odd)
        raise DataError(f"{told}: {what}: only texts and answers are trained on.")
    if (form := entry.get("formatting", "alpaca")) not in ("alpaca", "sharegpt", "openai"):
        raise DataError(f"{told}: formatting '{make_printable(str(form))}' is not alpaca, sharegpt or openai.")
    file = entry.get("file_name")
    if not isinstance(file, str) or not (path := folder / file).exists():
        raise DataError(f"{told}: no file '{make_printable(str(file))}' in {make_printable(name)}.")
    if path.is_dir():
        parts = [read_rows(p, f"{name}/{file}/{p.name}", skip_bad) for p in sorted(path.iterdir()) if p.is_file()]
        rows, faults = [r for some, _ in parts for r in some], [x for _, wrong in parts for x in wrong]
    else:
        rows, faults = read_rows(path, f"{name}/{file}", skip_bad)
    if form == "alpaca":
        ours = {word: columns.get(key, default) for word, (key, default) in ALPACA_COLUMNS.items()}
        if not any(ours["output"] in row.fields for row in rows):  # its pre-training sets have a prompt alone
            return [Row(r.where, {"text": r.fields.get(ours["instruction"])}) for r in rows], faults
        ours |= {key: columns[key] for key in ("system", "history", "tools") if key in columns}
        return [Row(r.where, {a: r.fields[b] for a, b in ours.items() if b in r.fields}) for r in rows], faults
    openai = form == "openai"
    key = columns.get("messages", "messages" if openai else "conversations")
    role, content = (
        tags.get("role_tag", "role" if openai else "from"),
        tags.get("content_tag", "content" if openai else "value"),
    )
    words = {tags.get(tag, ours if openai else theirs): ours for ours, (tag, theirs) in SHAREGPT_TAGS.items()}
    found = []
    for row in rows:
        if key not in row.fields:
            raise DataError(
                f'{row.where}: field "{make_printable(key)}": missing. It has: {", ".join(map(make_printable, row.fields))}.'
            )
        chat = row.fields[key]
        if isinstance(chat, list) and all(isinstance(turn, dict) for turn in chat):
            chat = [
                {
                    "role": words.get(who, who) if isinstance(who := turn.get(role), str) else who,
                    "content": turn.get(content),
                }
                for turn in chat
            ]
        more = {ours: row.fields.get(columns[ours]) for ours in ("system", "tools") if ours in columns}
        found.append(Row(row.where, {"messages": chat, **more}))
    return found, faults
