"""This module has a row of data, its fields as texts, and orders of rows that depend on content alone."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ...errors import DataError, format_faults, make_printable


class Row(NamedTuple):
    """One row of a data set."""

    where: str  # file:line, for messages
    fields: dict[str, Any]


# -- fields


def value_as_text(value: object) -> str:
    """Return a value as a text, the same whether it came from CSV or JSON, so that one row gives one text in every format."""
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, dict, list)):
        return json.dumps(value, default=str)
    return "" if value is None else str(value)


def read_field_text(row: Row, key: str) -> str:
    """Return a field as a text. DataError: it is missing, empty, or neither a text nor a finite number."""
    value = row.fields.get(key)
    is_finite = isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))
    if is_finite and (text := value_as_text(value)).strip():
        return text
    if key not in row.fields:
        fault = f"missing. It has: {', '.join(map(make_printable, row.fields))}"
    elif value is None:
        fault = "null"
    elif isinstance(value, str):
        fault = "empty"
    else:
        fault = f"{make_printable(repr(value))} is not a text or a finite number"
    raise DataError(f'{row.where}: field "{make_printable(key)}": {fault}.')


def describe_keys(rows: list[Row]) -> tuple[list[str], str]:
    """Return the keys of all rows, each once, and a text for messages, which says how many rows have all of them."""
    keys = list(dict.fromkeys(key for row in rows for key in row.fields))
    complete = sum(len(row.fields) == len(keys) for row in rows)
    return keys, f"Keys: {', '.join(map(make_printable, keys))} ({complete:,}/{len(rows):,} rows)"


def file_of_rows(rows: list[Row]) -> str:
    """Return the name of the file of the first row."""
    return rows[0].where.rpartition(":")[0]


def hash_text(text: str, salt: str) -> int:
    """Return a 64-bit hash of a text, which gives rows an order that no version of a library changes.

    salt: makes orders for different purposes independent of each other.
    """
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, salt=salt.encode()[:16]).digest(), "little")


def seeded_permutation(count: int, seed: int, epoch: int) -> list[int]:
    """Return a permutation of range(count), a pure function of (count, seed, epoch)."""
    return sorted(range(count), key=lambda i: (hash_text(f"{seed} {epoch} {i}", "order"), i))


# -- faults


class RowError(DataError):
    """Something is wrong with single rows, and the others could be trained on without them.

    Attributes:
        rows: where each of these rows stands, as `Row.where`.
    """

    def __init__(self, rows: Iterable[str], text: str):
        super().__init__(text)
        self.rows = frozenset(rows)


def raise_faults(faults: Mapping[str, DataError]) -> None:
    """Raise the faults of rows, by where each stands, as one RowError, sorted by file and line. With none, do nothing."""
    messages = sorted(map(str, faults.values()), key=natural_sort_key)
    if messages:
        raise RowError(faults, format_faults(messages))


def natural_sort_key(text: str) -> list[str | int]:
    """Return a key that sorts file:9 before file:10."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", text))]
