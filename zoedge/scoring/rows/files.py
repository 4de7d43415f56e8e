"""Read rows from .jsonl, .json, .csv, .parquet and .txt files, with the line number of every row."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ...errors import MAX_FAULTS_SHOWN, DataError, format_faults, make_printable
from .row import Row

LINE_LIMIT, DEPTH_LIMIT = 1 << 20, 16


# -- files


def read_rows(path: Path, name: str, skip_bad: bool = False) -> tuple[list[Row], list[str]]:
    """(rows, faults) of a file, or a hub data set's folder. Faults are raised together, or with `skip_bad` dropped."""
    if path.is_dir():
        found = [read_rows(f, f"{name}/{f.name}", skip_bad) for f in find_split_files(path, name)]
        return [r for rows, _ in found for r in rows], [x for _, faults in found for x in faults]
    if path.suffix.lower() not in READERS:
        raise DataError(
            f"{name}: '{make_printable(path.suffix) or 'no ending'}' is not read. Use {', '.join(READERS)}."
        )
    rows: list[Row] = []
    faults: list[str] = []
    try:
        for item in READERS[path.suffix.lower()](path, name):
            rows.append(item) if isinstance(item, Row) else faults.append(item)
    except OSError as e:
        raise DataError(f"{name}: cannot be read: {e.strerror or make_printable(str(e))}.") from None
    if faults and not (skip_bad and rows):
        count = f"{len(faults):,} bad line{'s' if len(faults) > 1 else ''} of {len(rows) + len(faults):,}"
        way_out = "data.skip_bad_lines=true drops and counts them" if rows else "is it the right file?"
        raise DataError(format_faults(faults) + (" " if len(faults) == 1 else "\n") + f"({count}; {way_out})")
    if not rows:
        raise DataError(f"{name}: no rows: the file is empty.")
    return rows, faults


def find_split_files(folder: Path, name: str) -> list[Path]:
    """The files of one split of a hub data set: `org/set` is its train split, `org/set:validation` and
    `org/set:config/test` name others. A split is a file's name without its shard's number, else a word of it, else a
    word of its folder's.
    """
    known = sorted(f.relative_to(folder) for f in folder.rglob("*") if f.suffix in HUB_SUFFIXES and f.is_file())
    whole = {f: re.sub(r"[-_.]?\d+(-of-\d+.*)?$", "", f.stem) for f in known}
    *config, split = (name.partition(":")[2] or "train").split("/")
    inside = [f for f in known if set(config) <= set(f.parts)]
    found = (
        [f for f in inside if whole[f] == split]
        or [f for f in inside if split in re.split("[^a-z]+", f.stem.lower())]
        or [f for f in inside if split in re.split("[^a-z]+", f.parent.as_posix().lower())]
        or (known if len(known) == 1 and ":" not in name else [])
    )
    if not found:
        there = (
            ", ".join(make_printable(str(f)) for f in known[:MAX_FAULTS_SHOWN]) or "no .jsonl, .csv or .parquet file"
        )
        raise DataError(
            f"{name}: no file of the split '{make_printable(split)}'. It has: {there}. Name one: ORG/SET:SPLIT."
        )
    if len(several := sorted({(f.parent / whole[f]).as_posix() for f in found})) > 1:
        one = f"{name.partition(':')[0]}:{several[0]}"
        raise DataError(
            f"{name}: several sets: {', '.join(map(make_printable, several))}. Name one, such as {make_printable(one)}."
        )
    return [folder / f for f in found]


def read_lines(path: Path, name: str) -> Iterator[tuple[str, bytes]]:
    """(file:line, bytes) of every line, the first without a byte-order mark; of an `endless` one, its beginning."""
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(LINE_LIMIT + (1 if number else 4)):  # a mark takes three bytes
            number += 1
            raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            yield f"{name}:{number}", raw
            if is_overlong(raw):
                while (rest := file.readline(LINE_LIMIT)) and not rest.endswith(b"\n"):
                    pass


def is_overlong(raw: bytes) -> bool:
    return len(raw) > LINE_LIMIT and not raw.endswith(b"\n")


def read_json_lines(path: Path, name: str) -> Iterator[Row | str]:
    """A Row a line, or a sentence about what is wrong with it."""
    for i, (where, raw) in enumerate(read_lines(path, name)):
        if i == 0 and raw.lstrip().startswith(b"["):
            raise DataError(f"{where}: a JSON array. Write one object a line: jq -c '.[]' OLD > NEW.jsonl")
        if is_overlong(raw):
            yield f"{where}: longer than 1 MiB"
        elif raw.strip():
            value = parse_json_object(raw.rstrip(b"\r\n"))
            yield Row(where, value) if isinstance(value, dict) else f"{where}: {value}"


def read_json_array(path: Path, name: str) -> Iterator[Row | str]:
    """A Row an item of a .json file's array, or a sentence about what is wrong with it; JSON lines are read as such."""
    with path.open("rb") as file:
        first = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not first.startswith(b"["):
        yield from read_json_lines(path, name)
        return
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{name}:{find_invalid_utf8(path)}: not UTF-8.") from None
    del raw
    at, number = text.index("[") + 1, 0
    while (at := skip_whitespace(text, at)) < len(text) and (text[at] != "]" or number):
        number += 1
        try:
            end = ITEM_SCANNER.raw_decode(text, at)[1]
        except json.JSONDecodeError as e:
            raise DataError(f"{name}:{e.lineno}: item {number}: {format_json_error(e, text)}.") from None
        except RecursionError:
            raise DataError(
                f"{name}:{text.count(chr(10), 0, at) + 1}: item {number}: nested more than {DEPTH_LIMIT} deep."
            ) from None
        value = (
            "longer than 1 MiB"
            if end - at > LINE_LIMIT
            else parse_json_object(text[at:end].encode("utf-8", "surrogatepass"))
        )
        where = f"{name}:item {number}"
        value = value.replace("a line must be", "an item must be") if isinstance(value, str) else value
        yield Row(where, value) if isinstance(value, dict) else f"{where}: {value}"
        at = skip_whitespace(text, end)
        if text[at : at + 1] != ",":
            break
        at += 1
    at = skip_whitespace(text, at)
    line = text.count("\n", 0, at) + 1
    if text[at : at + 1] != "]":
        raise DataError(f"{name}:{line}: not valid JSON: expected ',' or ']' after item {number}.")
    if skip_whitespace(text, at + 1) < len(text):
        raise DataError(f"{name}:{line}: not valid JSON: something follows the array.")


ITEM_SCANNER = json.JSONDecoder(parse_int=len, parse_float=len, parse_constant=len)  # only to find where an item ends


def skip_whitespace(text: str, at: int) -> int:
    """The next place that holds no white space."""
    while at < len(text) and text[at] in " \t\n\r":
        at += 1
    return at


def read_text_lines(path: Path, name: str) -> Iterator[Row | str]:
    """A Row {text} a line that is not empty."""
    for where, raw in read_lines(path, name):
        if is_overlong(raw):
            yield f"{where}: longer than 1 MiB"
            continue
        try:
            text = raw.decode().rstrip("\r\n")
        except UnicodeDecodeError as e:
            yield f"{where}: not UTF-8 (byte {e.start} of the line)"
            continue
        if "\0" in text:
            yield f"{where}: a NUL character: is it a text?"
        elif text.strip():
            yield Row(where, {"text": text})


def parse_json_object(raw: bytes) -> dict[str, Any] | str:
    """The object in a line, or what is wrong with it."""

    def constant(word: str) -> Any:
        raise ValueError(f"{word} is not JSON")

    def whole(digits: str) -> int:
        if len(digits) > 400:  # Python refuses to read (and to print) much longer ones
            raise ValueError(f"a number of {len(digits):,} digits")
        return int(digits)

    def table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) != len(pairs):
            twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
            raise ValueError(f'the key "{make_printable(twice)}" stands twice')
        return found

    try:
        text = raw.decode()
        value = json.loads(text, parse_constant=constant, parse_int=whole, object_pairs_hook=table)
    except UnicodeDecodeError as e:
        return f"not UTF-8 (byte {e.start} of the line)"
    except json.JSONDecodeError as e:
        return format_json_error(e, text)
    except RecursionError:
        return f"nested more than {DEPTH_LIMIT} deep"
    except ValueError as e:
        return f"not valid JSON: {e}"
    if not isinstance(value, dict):
        return "a line must be an object, {...}"
    if is_too_deep(value):
        return f"nested more than {DEPTH_LIMIT} deep"
    if "\\u" in text and re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False)):
        return "half a character (a lone surrogate)"
    return value


def format_json_error(e: json.JSONDecodeError, text: str) -> str:
    """What the library says is wrong, in words that say what it expected."""
    what = "a BOM inside the file" if "BOM" in e.msg else e.msg[:1].lower() + e.msg[1:]
    closing = "',', ']' or '}'" if "[" in text[: e.pos] else "',' or '}'"
    what = what.replace("expecting", "expected").replace("',' delimiter", closing).removesuffix(" at").rstrip(": ")
    return f"not valid JSON: {what} at column {e.colno}"


def is_too_deep(value: object, left: int = DEPTH_LIMIT) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left < 0 or any(is_too_deep(v, left - 1) for v in inner)


def read_csv_rows(path: Path, name: str) -> Iterator[Row | str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(read_csv_lines(file, name), strict=True)
            header = reader.fieldnames or []
            if len(set(header)) != len(header):
                raise DataError(f"{name}:1: a column's name stands twice.")
            for fields in reader:
                where = f"{name}:{reader.line_num}"
                wrong = None in fields or None in fields.values()
                yield f"{where}: not {len(header)} columns, as in the header" if wrong else Row(where, fields)
    except UnicodeDecodeError as e:
        raise DataError(f"{name}:{find_invalid_utf8(path)}: not UTF-8 ({e.reason}).") from None
    except csv.Error as e:  # raised: where a quote is lost, what follows cannot be told apart, and must not be skipped
        raise DataError(f"{name}:{reader.line_num + 1}: not valid CSV: {e}. Mend the line.") from None


def read_csv_lines(file: TextIO, name: str) -> Iterator[str]:
    """A text's lines; csv's own limit is that of a field, and comes after the line has been read."""
    number = 0
    while line := file.readline(LINE_LIMIT + 1):
        number += 1
        if len(line) > LINE_LIMIT:
            raise DataError(f"{name}:{number}: longer than 1 MiB.")
        yield line


def find_invalid_utf8(path: Path) -> int:
    """The first line that is not UTF-8: the decoder counts from its own buffer."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                raw.decode()
            except UnicodeDecodeError:
                return number
    return 0


def read_parquet_rows(path: Path, name: str) -> Iterator[Row | str]:
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for fields in batch.to_pylist():
                number += 1
                yield Row(f"{name}:{number}", fields)
    except (pyarrow.ArrowException, OSError, ValueError) as e:  # ValueError: a text that is not UTF-8
        raise DataError(f"{name}: not a readable Parquet file: {make_printable(str(e))}") from None


READERS = {
    ".jsonl": read_json_lines,
    ".json": read_json_array,
    ".csv": read_csv_rows,
    ".parquet": read_parquet_rows,
    ".txt": read_text_lines,
}

HUB_SUFFIXES = set(READERS) - {".txt"}  # of a hub's data sets, whose other texts are about them
