"""Rename, require and filter the fields of rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ...errors import DataError, make_printable, suggest_nearest
from .row import Row, describe_keys, file_of_rows, value_as_text


def rename_fields(rows: list[Row], fields: dict[str, str]) -> list[Row]:
    """Rows with data.fields applied, {ours: theirs}, all at once: two names may be swapped."""
    there = {key for row in rows for key in row.fields}
    for ours, theirs in fields.items():
        if theirs not in there and ours not in there:
            near = suggest_nearest(theirs, there) or f". Keys: {', '.join(sorted(map(make_printable, there)))}."
            raise DataError(f"{file_of_rows(rows)}: data.fields.{ours}: no row has '{make_printable(theirs)}'{near}")
    return [Row(r.where, r.fields | {a: r.fields[b] for a, b in fields.items() if b in r.fields}) for r in rows]


def without_rows(rows: list[Row], without: dict[str, str]) -> list[Row]:
    """The rows none of whose fields is what `without` says of it. DataError: no such field, or none left."""
    for key in without:
        if not any(key in row.fields for row in rows):
            raise DataError(
                f"{file_of_rows(rows)}: data.without: no row has "
                f"'{make_printable(key)}'{suggest_nearest(key, rows[0].fields) or '.'}"
            )
    found = [
        row for row in rows if not any(value_as_text(row.fields.get(key)) == text for key, text in without.items())
    ]
    if not found:
        raise DataError(f"{file_of_rows(rows)}: data.without leaves none of {len(rows):,} rows.")
    return found


def require_fields(
    rows: list[Row], prompt: Sequence[str], label: str, choices: Sequence[str] = (), option: str = "task.label"
) -> None:
    """DataError where no row has a field that the task needs: what is there instead, and what likely stands for it."""
    seen = Counter(key for row in rows for key in row.fields)
    owners = dict.fromkeys(prompt, "task.prompt") | dict.fromkeys(choices, "task.choices")
    owners |= {label: option} if label else {}
    absent = [f for f in owners if f not in seen]
    if not absent:
        return
    from .formats import find_chat_formats

    if told := find_chat_formats(rows):
        raise DataError(
            f"{file_of_rows(rows)}: no row has "
            f"{', '.join(f'{make_printable(f)} ({owners[f]})' for f in absent)}: its rows are conversations "
            f"({told}). Set task: chat."
        )
    if set(seen) == {"text"} and option == "task.label":
        raise DataError(
            f"{file_of_rows(rows)}: its rows are plain text, without {make_printable(absent[0])} "
            f"({owners[absent[0]]}). Set task: lm."
        )
    free = [key for key in seen if key not in owners]
    guess: dict[str, str] = {}
    for field in sorted(absent, key=lambda f: f == label):
        columns = {key: [value_as_text(row.fields.get(key)) for row in rows[:1000]] for key in free}
        if near := [key for key in free if field in key.lower() or key.lower() in field]:
            guess[field] = near[0]
        elif field == label:  # the fewest values, two at least
            some = [key for key in free if len(set(columns[key])) > 1]
            guess[field] = min(some, key=lambda key: len(set(columns[key])), default="...")
        else:  # the longest text
            guess[field] = max(free, key=lambda key: sum(map(len, columns[key])), default="...")
        free = [key for key in free if key != guess[field]]
    raise DataError(
        f"{file_of_rows(rows)}: no row has {', '.join(f'{make_printable(f)} ({owners[f]})' for f in absent)}. "
        f"{describe_keys(rows)[1]}. "
        f"Add data.fields: {{{', '.join(f'{make_printable(f)}: {make_printable(guess[f])}' for f in absent)}}}."
    )
