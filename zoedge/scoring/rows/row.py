"""`Row`: one row of data, where it stands, and its identity by content."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from ...errors import DataError, format_faults, make_printable


class Row(NamedTuple):
    where: str  # file:line, for messages
    fields: dict[str, Any]


# -- fields


def value_as_text(value: object) -> str:
    """A value as CSV and JSON would both write it, so that one row gives one text whatever file it came from."""
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, dict, list)):
        return json.dumps(value, default=str)
    return "" if value is None else str(value)


def read_field_text(row: Row, key: str) -> str:
    """A field as a non-empty text; DataError names the row and what it has."""
    value = row.fields.get(key)
    finite = isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))
    if finite and (text := value_as_text(value)).strip():
        return text
    if key not in row.fields:
        what = f"missing. It has: {', '.join(map(make_printable, row.fields))}"
    elif value is None:
        what = "null"
    elif isinstance(value, str):
        what = "empty"
    else:
        what = f"{make_printable(repr(value))} is not a text or a finite number"
    raise DataError(f'{row.where}: field "{make_printable(key)}": {what}.')


def describe_keys(rows: list[Row]) -> tuple[list[str], str]:
    """(the keys of rows, and how to tell of them)."""
    seen = list(dict.fromkeys(key for row in rows for key in row.fields))
    whole = sum(len(row.fields) == len(seen) for row in rows)
    return seen, f"Keys: {', '.join(map(make_printable, seen))} ({whole:,}/{len(rows):,} rows)"


def file_of_rows(rows: list[Row]) -> str:
    return rows[0].where.rpartition(":")[0]


def hash_text(text: str, salt: str) -> int:
    """64 bits of a text: an order that no library's version changes."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, salt=salt.encode()[:16]).digest(), "little")


def seeded_permutation(count: int, seed: int, epoch: int) -> list[int]:
    """A permutation of range(count) as a function of (seed, epoch)."""
    return sorted(range(count), key=lambda i: (hash_text(f"{seed} {epoch} {i}", "order"), i))


# -- faults


def raise_faults(faults: Iterable[DataError]) -> None:
    """Raise several faults as one, in the files' order: a set's own order is by content."""
    if found := sorted(map(str, faults), key=natural_sort_key):
        raise DataError(format_faults(found))


def natural_sort_key(text: str) -> list[str | int]:
    """A key that sorts file:9 before file:10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", text))]
