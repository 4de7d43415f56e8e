"""This module renames the fields of rows, requires them, and leaves rows out by them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ...errors import DataError, make_printable, suggest_nearest
from .row import Row, describe_keys, file_of_rows, value_as_text


def check_names(fields: dict[str, str], reads: set[str]) -> None:
    """Raise DataError if data.fields, {new name: name in the file}, has a new name that is none of the fields in `reads`."""
    for new in fields:
        if new not in reads:
            known = ", ".join(sorted(map(make_printable, reads)))
            raise DataError(
                f"data.fields.{make_printable(new)}: nothing reads a field of this name{suggest_nearest(new, reads) or '.'} "
                f"The name that the task reads stands first, and the file's after it. The task reads: {known}."
            )


def rename_fields(rows: list[Row], fields: dict[str, str]) -> list[Row]:
    """Return rows with the fields of data.fields, {new name: name in the file}, besides their own.

    All fields are renamed at once, so that two may be swapped. DataError: no row has either name.
    """
    keys = {key for row in rows for key in row.fields}
    for new, old in fields.items():
        if old not in keys and new not in keys:
            hint = suggest_nearest(old, keys) or f". Keys: {', '.join(sorted(map(make_printable, keys)))}."
            raise DataError(f"{file_of_rows(rows)}: data.fields.{new}: no row has '{make_printable(old)}'{hint}")
    renamed = []
    for row in rows:
        added = {new: row.fields[old] for new, old in fields.items() if old in row.fields}
        renamed.append(Row(row.where, row.fields | added))
    return renamed


def without_rows(rows: list[Row], without: dict[str, str]) -> list[Row]:
    """Return the rows but for those with a field that has the text in `without`, {field: text}.

    DataError: no row has the field, or no row is left.
    """
    for key in without:
        if not any(key in row.fields for row in rows):
            raise DataError(
                f"{file_of_rows(rows)}: data.without: no row has "
                f"'{make_printable(key)}'{suggest_nearest(key, rows[0].fields) or '.'}"
            )
    kept = [row for row in rows if not any(value_as_text(row.fields.get(key)) == text for key, text in without.items())]
    if not kept:
        raise DataError(f"{file_of_rows(rows)}: data.without leaves none of {len(rows):,} rows.")
    return kept


def require_fields(
    rows: list[Row], prompt: Sequence[str], label: str, choices: Sequence[str] = (), option: str = "task.label"
) -> None:
    """Raise DataError if no row has a field that the task needs. The message says which fields there are.

    Args:
        prompt: the fields of the prompt.
        label: the field with the label; "": the task has none.
        choices: fields with a candidate each.
        option: the recipe's key that names the label's field, for the message.
    """
    key_counts = Counter(key for row in rows for key in row.fields)
    owners = dict.fromkeys(prompt, "task.prompt") | dict.fromkeys(choices, "task.choices")
    owners |= {label: option} if label else {}
    absent = [field for field in owners if field not in key_counts]
    if not absent:
        return
    from .formats import find_chat_formats

    missing = ", ".join(f"{make_printable(field)} ({owners[field]})" for field in absent)
    chat_formats = find_chat_formats(rows)
    if chat_formats:
        raise DataError(
            f"{file_of_rows(rows)}: no row has {missing}: its rows are conversations ({chat_formats}). Set task: chat."
        )
    if set(key_counts) == {"text"} and option == "task.label":
        raise DataError(
            f"{file_of_rows(rows)}: its rows are plain text, without {make_printable(absent[0])} "
            f"({owners[absent[0]]}). Set task: lm."
        )
    if file_of_rows(rows).endswith((".csv", ".tsv")) and any(looks_like_data(key) for key in key_counts):
        raise DataError(
            f"{file_of_rows(rows)}: no row has {missing}. {describe_keys(rows)[1]}. Its first line names the columns. If it "
            f"is a row, put the names above it: sed '1i {','.join(map(make_printable, owners))}' OLD.csv > NEW.csv"
        )
    guesses = guess_fields(rows, absent, label, [key for key in key_counts if key not in owners])
    suggestion = ", ".join(f"{make_printable(field)}: {make_printable(guesses[field])}" for field in absent)
    raise DataError(
        f"{file_of_rows(rows)}: no row has {missing}. {describe_keys(rows)[1]}. Add data.fields: {{{suggestion}}}."
    )


def looks_like_data(name: str) -> bool:
    """Return whether a column's name looks like a text or a number of a row: names have no three words, and are no numbers."""
    return len(name.split()) > 2 or len(name) > 60 or name.replace(".", "", 1).lstrip("-").isdecimal()


def guess_fields(rows: list[Row], absent: list[str], label: str, keys: list[str]) -> dict[str, str]:
    """Return for each absent field the key of rows that most likely stands for it, or "..." where none is left.

    A key with a similar name is taken first. Without one, the label is the key with the fewest different values, but at
    least two, and any other field is the key with the longest texts.
    """
    guesses: dict[str, str] = {}
    free = keys
    for field in sorted(absent, key=lambda field: field == label):  # the label comes last
        columns = {key: [value_as_text(row.fields.get(key)) for row in rows[:1000]] for key in free}
        similar = [key for key in free if field in key.lower() or key.lower() in field]
        if similar:
            guesses[field] = similar[0]
        elif field == label:
            varied = [key for key in free if len(set(columns[key])) > 1]
            guesses[field] = min(varied, key=lambda key: len(set(columns[key])), default="...")
        else:
            guesses[field] = max(free, key=lambda key: sum(map(len, columns[key])), default="...")
        free = [key for key in free if key != guesses[field]]
    return guesses
