"""Reading rows of text: JSON lines, CSV and Parquet, strictly, each fault with file:line.

Own reader for JSON lines because the libraries' readers turn a missing label into None, keep NaN, coerce "2" to 2, give
no line number, and answer an empty file with StopIteration. CSV and Parquet go through `datasets`' own back-ends.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError, plain

LINE = 1 << 20
SHOWN = 20


class Row(NamedTuple):
    where: str  # file:line, for messages
    fields: dict[str, Any]


def read(path: Path, name: str, skip_bad: bool = False) -> tuple[list[Row], list[str]]:
    """(rows, faults) of a file. Faults are raised together, unless `skip_bad` drops their rows."""
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.suffix in READERS and "train" in f.name) or sorted(
            f for f in path.rglob("*") if f.suffix in READERS
        )
        if not files:
            raise DataError(f"{name}: holds no .jsonl, .csv or .parquet file.")
        found = [read(f, f.name, skip_bad) for f in files]
        return [r for rows, _ in found for r in rows], [x for _, faults in found for x in faults]
    if path.suffix not in READERS:
        raise DataError(f"{name}: '{path.suffix or 'no ending'}' is not read. Use {', '.join(READERS)}.")
    rows: list[Row] = []
    faults: list[str] = []
    for item in READERS[path.suffix](path, name):
        rows.append(item) if isinstance(item, Row) else faults.append(item)
    if faults and not skip_bad:
        more = f"\n... and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        many = f"{len(faults)} bad line{'s' if len(faults) > 1 else ''} of {len(rows) + len(faults):,}"
        raise DataError("\n".join(faults[:SHOWN]) + f"{more}\n({many}; data.skip_bad_lines=true drops and counts them)")
    if not rows:
        raise DataError(f"{name}: no rows.")
    return rows, faults


def json_lines(path: Path, name: str) -> Iterator[Row | str]:
    """A Row a line, or a sentence about what is wrong with it."""

    def no_constants(word: str) -> Any:
        raise ValueError(f"{word} is not JSON")

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError("a key stands twice")
        return table

    with path.open("rb") as file:
        number = 0
        while raw := file.readline(LINE + 1):
            number += 1
            where = f"{name}:{number}"
            if len(raw) > LINE and not raw.endswith(b"\n"):
                yield f"{where}: longer than 1 MiB"
                while (rest := file.readline(LINE)) and not rest.endswith(b"\n"):
                    pass
                continue
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if not raw.strip():
                continue
            try:
                value = json.loads(raw.decode(), parse_constant=no_constants, object_pairs_hook=no_duplicates)
            except UnicodeDecodeError as e:
                yield f"{where}: not UTF-8 (byte {e.start})"
            except json.JSONDecodeError as e:
                what = e.msg[:1].lower() + e.msg[1:]
                yield f"{where}: not valid JSON: {what} at column {e.colno}"
            except (ValueError, RecursionError) as e:
                yield f"{where}: not valid JSON: {e}"
            else:
                yield Row(where, value) if isinstance(value, dict) else f"{where}: a line must be an object, {{...}}"


def csv_rows(path: Path, name: str) -> Iterator[Row | str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header = reader.fieldnames or []
            if len(set(header)) != len(header):
                raise DataError(f"{name}:1: a column's name stands twice.")
            for fields in reader:
                where = f"{name}:{reader.line_num}"
                wrong = None in fields or None in fields.values()
                yield f"{where}: not {len(header)} columns, as in the header" if wrong else Row(where, fields)
    except UnicodeDecodeError as e:
        raise DataError(f"{name}: not UTF-8 (byte {e.start}).") from None
    except csv.Error as e:
        yield f"{name}:{reader.line_num}: not valid CSV: {e}"


def parquet_rows(path: Path, name: str) -> Iterator[Row | str]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for fields in batch.to_pylist():
                number += 1
                yield Row(f"{name}:{number}", fields)
    except (pyarrow.ArrowException, OSError) as e:
        raise DataError(f"{name}: not a readable Parquet file: {plain(str(e))}") from None


READERS = {".jsonl": json_lines, ".json": json_lines, ".csv": csv_rows, ".parquet": parquet_rows}


def text_of(row: Row, key: str, what: str) -> str:
    """A field as a non-empty text; DataError names the row and what it has."""
    value = row.fields.get(key)
    if value is None:
        raise DataError(f'{row.where}: field "{plain(key)}": missing{what}. It has: {", ".join(map(plain, row.fields))}.')
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or (isinstance(value, float) and not math.isfinite(value)):
        raise DataError(f'{row.where}: field "{plain(key)}": {plain(repr(value))} is not a text or a number.')
    if not str(value).strip():
        raise DataError(f'{row.where}: field "{plain(key)}": empty.')
    return str(value)


def hashed(text: str, salt: str) -> int:
    """64 bits of a text: an order that no library's version changes."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, salt=salt.encode()[:16]).digest(), "little")


def share(rows: list[Row], size: int | float, salt: str) -> tuple[list[Row], list[Row]]:
    """(rest, taken): about `size` rows (or that share) by a hash of their content, equal rows on the same side."""
    wanted = round(size * len(rows)) if isinstance(size, float) and size < 1 else int(size)
    if not 0 < wanted < len(rows):
        raise DataError(f"data: cannot take {size} rows of {len(rows):,}.")
    keys = [hashed(json.dumps(r.fields, sort_keys=True, default=str), salt) for r in rows]
    limit = sorted(keys)[wanted - 1]
    rest = [r for r, k in zip(rows, keys) if k > limit]
    return rest, [r for r, k in zip(rows, keys) if k <= limit]


def shuffled(count: int, seed: int, epoch: int) -> list[int]:
    """A permutation of range(count) as a function of (seed, epoch)."""
    return sorted(range(count), key=lambda i: (hashed(f"{seed} {epoch} {i}", "order"), i))


def many(faults: Iterable[DataError]) -> None:
    """Raise several faults as one."""
    found = [str(f) for f in faults]
    if found:
        more = f"\n... and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise DataError("\n".join(found[:SHOWN]) + more)
