"""Rename, require and filter the fields of rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ...errors import DataError, nearest, plain
from .row import Row, as_text, file_of, keys_of


def renamed(rows: list[Row], fields: dict[str, str]) -> list[Row]:
    """Rows with data.fields applied, {ours: theirs}, all at once: two names may be swapped."""
    there = {key for row in rows for key in row.fields}
    for ours, theirs in fields.items():
        if theirs not in there and ours not in there:
            near = nearest(theirs, there) or f". Keys: {', '.join(sorted(map(plain, there)))}."
            raise DataError(f"{file_of(rows)}: data.fields.{ours}: no row has '{plain(theirs)}'{near}")
    return [Row(r.where, r.fields | {a: r.fields[b] for a, b in fields.items() if b in r.fields}) for r in rows]


def left(rows: list[Row], without: dict[str, str]) -> list[Row]:
    """The rows none of whose fields is what `without` says of it. DataError: no such field, or none left."""
    for key in without:
        if not any(key in row.fields for row in rows):
            raise DataError(
                f"{file_of(rows)}: data.without: no row has '{plain(key)}'{nearest(key, rows[0].fields) or '.'}"
            )
    found = [row for row in rows if not any(as_text(row.fields.get(key)) == text for key, text in without.items())]
    if not found:
        raise DataError(f"{file_of(rows)}: data.without leaves none of {len(rows):,} rows.")
    return found


def require(
    rows: list[Row], prompt: Sequence[str], label: str, choices: Sequence[str] = (), option: str = "task.label"
) -> None:
    """DataError where no row has a field that the task needs: what is there instead, and what likely stands for it."""
    seen = Counter(key for row in rows for key in row.fields)
    owners = dict.fromkeys(prompt, "task.prompt") | dict.fromkeys(choices, "task.choices")
    owners |= {label: option} if label else {}
    absent = [f for f in owners if f not in seen]
    if not absent:
        return
    from .formats import spoken

    if told := spoken(rows):
        raise DataError(
            f"{file_of(rows)}: no row has {', '.join(f'{plain(f)} ({owners[f]})' for f in absent)}: its rows are conversations "
            f"({told}). Set task: chat."
        )
    if set(seen) == {"text"} and option == "task.label":
        raise DataError(
            f"{file_of(rows)}: its rows are plain text, without {plain(absent[0])} ({owners[absent[0]]}). Set task: lm."
        )
    free = [key for key in seen if key not in owners]
    guess: dict[str, str] = {}
    for field in sorted(absent, key=lambda f: f == label):
        columns = {key: [as_text(row.fields.get(key)) for row in rows[:1000]] for key in free}
        if near := [key for key in free if field in key.lower() or key.lower() in field]:
            guess[field] = near[0]
        elif field == label:  # the fewest values, two at least
            some = [key for key in free if len(set(columns[key])) > 1]
            guess[field] = min(some, key=lambda key: len(set(columns[key])), default="...")
        else:  # the longest text
            guess[field] = max(free, key=lambda key: sum(map(len, columns[key])), default="...")
        free = [key for key in free if key != guess[field]]
    raise DataError(
        f"{file_of(rows)}: no row has {', '.join(f'{plain(f)} ({owners[f]})' for f in absent)}. {keys_of(rows)[1]}. "
        f"Add data.fields: {{{', '.join(f'{plain(f)}: {plain(guess[f])}' for f in absent)}}}."
    )
