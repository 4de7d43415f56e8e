"""This module reads rows from .jsonl, .json, .csv, .tsv, .parquet and .txt files, strictly, with the line of every fault.

JSON has a reader of its own here, because those of the libraries turn a missing label into None, keep NaN, make 2 of "2", give
no line number, and answer an empty file with StopIteration. CSV is read by the standard library in strict mode, Parquet by
pyarrow.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ...errors import MAX_FAULTS_SHOWN, DataError, format_faults, make_printable
from ..sources.pointers import check_pointer
from .row import Row
from .tables import LINE_LIMIT, find_invalid_utf8, read_csv_rows, read_tsv_rows

ONE_OBJECT_LIMIT = 64 << 20  # bytes of a .json file that is looked at as one object
DEPTH_LIMIT = 16  # levels of nested lists and objects in a row


def read_rows(path: Path, name: str, skip_bad: bool = False) -> tuple[list[Row], list[str]]:
    """Return the rows of a file or of a hub data set's folder, and a sentence for each line that is not valid.

    Args:
        path: the file or folder.
        name: what messages call it.
        skip_bad: leave lines out that are not valid, as long as there are others.

    Raises:
        DataError: a line is not valid (all are named together), the file cannot be read, or it has no rows.
    """
    if "*" in path.name and not path.exists():
        files = sorted(file for file in path.parent.glob(path.name) if file.is_file())
        if not files:
            raise DataError(f"{name}: no file has such a name.")
        return join_parts([read_rows(file, str(Path(name).with_name(file.name)), skip_bad) for file in files])
    if path.is_dir():
        parts = [read_rows(file, f"{name}/{file.name}", skip_bad) for file in find_split_files(path, name)]
        return join_parts(parts)
    if path.suffix.lower() not in READERS:
        raise DataError(
            f"{name}: '{make_printable(path.suffix) or 'no ending'}' is not read. Use {', '.join(READERS)}."
        )
    rows: list[Row] = []
    faults: list[str] = []
    try:
        check_pointer(path, name)
        for item in READERS[path.suffix.lower()](path, name):
            if isinstance(item, Row):
                rows.append(item)
            else:
                faults.append(item)
    except OSError as e:
        raise DataError(f"{name}: cannot be read: {e.strerror or make_printable(str(e))}.") from None
    if faults and not (skip_bad and rows):
        plural = "s" if len(faults) > 1 else ""
        count = f"{len(faults):,} bad line{plural} of {len(rows) + len(faults):,}"
        way_out = "data.skip_bad_lines=true drops and counts them" if rows else "is it the right file?"
        separator = "\n" if len(faults) > 1 else " "
        raise DataError(f"{format_faults(faults)}{separator}({count}; {way_out})")
    if not rows:
        raise DataError(f"{name}: no rows: the file is empty.")
    if len(rows) == 1 and path.suffix.lower() == ".jsonl":
        check_table(rows[0].fields, name)
    return rows, faults


def join_parts(parts: list[tuple[list[Row], list[str]]]) -> tuple[list[Row], list[str]]:
    """Return the rows and the faults of several files as those of one."""
    return [row for rows, _ in parts for row in rows], [fault for _, faults in parts for fault in faults]


def find_split_files(folder: Path, name: str) -> list[Path]:
    """Return the files of one split of a hub data set, in the order of its shards.

    The name `org/set` means the train split; `org/set:validation` and `org/set:config/test` name others. The files of a split
    are those whose name without a shard's number is the split's, else those with the split as a word of their name, else those
    with the split as a word of their folder's name. DataError: there is no such file, or the files are of several sets.
    """
    files = sorted(
        f.relative_to(folder)
        for f in folder.rglob("*")
        if f.suffix in HUB_SUFFIXES and f.is_file() and f.name not in SAVED_NOTES and not f.name.startswith("cache-")
    )
    without_shard = {f: re.sub(r"[-_.]?\d+(-of-\d+.*)?$", "", f.stem) for f in files}
    *config, split = (name.partition(":")[2] or "train").split("/")
    if (
        folder / SAVED_NOTES[1]
    ).is_file() and ":" not in name:  # one split that datasets has saved, whatever it is called
        return [folder / f for f in files if f.suffix == ".arrow"]
    of_config = [f for f in files if set(config) <= set(f.parts)]
    chosen = (
        [f for f in of_config if without_shard[f] == split]
        or [f for f in of_config if split in re.split("[^a-z]+", f.stem.lower())]
        or [f for f in of_config if split in re.split("[^a-z]+", f.parent.as_posix().lower())]
        or (files if len(files) == 1 and ":" not in name else [])
    )
    if not chosen:
        shown = ", ".join(make_printable(str(f)) for f in files[:MAX_FAULTS_SHOWN])
        raise DataError(
            f"{name}: no file of the split '{make_printable(split)}'. "
            f"It has: {shown or 'no file of rows'}. Name one: ORG/SET:SPLIT."
        )
    sets = sorted({(f.parent / without_shard[f]).as_posix() for f in chosen})
    if len(sets) > 1:
        example = f"{name.partition(':')[0]}:{sets[0]}"
        raise DataError(
            f"{name}: several sets: {', '.join(map(make_printable, sets))}. Name one, such as {make_printable(example)}."
        )
    return [folder / f for f in chosen]


def read_lines(path: Path, name: str) -> Iterator[tuple[str, bytes]]:
    """Yield file:line and the bytes of every line, the first one without a byte-order mark.

    Of a line that `is_overlong`, only the beginning is read into memory.
    """
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(LINE_LIMIT + (1 if number else 4)):  # a byte-order mark has three bytes
            number += 1
            raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            yield f"{name}:{number}", raw
            if is_overlong(raw):
                while (rest := file.readline(LINE_LIMIT)) and not rest.endswith(b"\n"):
                    pass


def is_overlong(raw: bytes) -> bool:
    """Return whether a line, as `read_lines` yields it, is longer than LINE_LIMIT."""
    return len(raw) > LINE_LIMIT and not raw.endswith(b"\n")


def read_json_lines(path: Path, name: str) -> Iterator[Row | str]:
    """Yield for each line that is not empty its row, or a sentence about what is wrong with it. DataError: a JSON array."""
    for i, (where, raw) in enumerate(read_lines(path, name)):
        if i == 0 and raw.lstrip().startswith(b"["):
            raise DataError(f"{where}: a JSON array. Write one object a line: jq -c '.[]' OLD > NEW.jsonl")
        if is_overlong(raw):
            yield f"{where}: longer than 1 MiB"
        elif raw.strip():
            value = parse_json_object(raw.rstrip(b"\r\n"))
            if i == 0 and isinstance(value, str) and raw.strip() in (b"{", b"{ "):
                raise DataError(f"{where}: an object over several lines. Write each on one: jq -c . OLD > NEW.jsonl")
            yield Row(where, value) if isinstance(value, dict) else f"{where}: {value}"


def read_json_array(path: Path, name: str) -> Iterator[Row | str]:
    """Yield for each item of a .json file's array its row, or a sentence about what is wrong with it.

    A .json file that holds JSON lines is read as such. DataError: the array itself is not valid, so that its items cannot be
    told apart.
    """
    with path.open("rb") as file:
        first = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not first.startswith(b"["):
        one = read_one_object(path)
        if one is None:
            yield from read_json_lines(path, name)
        else:
            check_one_object(one, name)
            yield Row(f"{name}:1", one)
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
        where = f"{name}:item {number}"
        item: dict[str, Any] | str = "longer than 1 MiB"
        if end - at <= LINE_LIMIT:
            item = parse_json_object(text[at:end].encode("utf-8", "surrogatepass"))
        if isinstance(item, dict):
            yield Row(where, item)
        else:
            yield f"{where}: {item.replace('a line must be', 'an item must be')}"
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


def read_one_object(path: Path) -> dict[str, Any] | None:
    """Return the object that a whole .json file is, over several lines perhaps; None: it is no single one, or large."""
    if path.stat().st_size > ONE_OBJECT_LIMIT:
        return None
    value = parse_json_object(path.read_bytes().removeprefix(b"\xef\xbb\xbf").strip())
    return value if isinstance(value, dict) else None


def check_table(value: dict[str, Any], name: str) -> None:
    """Raise DataError if an object is a table by columns, of lists or as pandas writes it. name: its file's."""
    columns = list(value.values())
    lengths = {len(column) if isinstance(column, list) else -1 for column in columns}
    are_lists = len(columns) > 1 and len(lengths) == 1 and -1 not in lengths
    are_cells = are_lists and not any(isinstance(cell, (dict, list)) for column in columns for cell in column)
    are_numbered = all(isinstance(column, dict) and column and all(map(str.isdecimal, column)) for column in columns)
    if are_cells or (columns and are_numbered):
        raise DataError(
            f"{name}: one object of columns ({', '.join(map(make_printable, list(value)[:8]))}), not rows. Write an array, or "
            "one object a line; with pandas: df.to_json(FILE, orient='records', lines=True)."
        )


def check_one_object(value: dict[str, Any], name: str) -> None:
    """Refuse the one object of a .json file if it holds rows, and is none itself.

    DataError: it is a table by columns, or has its rows in a key. The message says how to write them.
    """
    check_table(value, name)
    if value.keys() & {"messages", "conversations", "prompt", "instruction", "question", "segments"}:
        return
    for key, rows in value.items():
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
            raise DataError(
                f"{name}: one object, whose rows are in its key {make_printable(key)}. Write them alone: "
                f"jq -c '.{make_printable(key)}[]' OLD.json > NEW.jsonl"
            )


ITEM_SCANNER = json.JSONDecoder(parse_int=len, parse_float=len, parse_constant=len)  # it only finds where an item ends


def skip_whitespace(text: str, at: int) -> int:
    """Return the first place from `at` on that holds no white space."""
    while at < len(text) and text[at] in " \t\n\r":
        at += 1
    return at


def read_text_lines(path: Path, name: str) -> Iterator[Row | str]:
    """Yield for each line that is not empty a row {text}, or a sentence about what is wrong with it."""
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
    """Return the object in a line, or a sentence about what is wrong with it."""

    def refuse_constant(word: str) -> Any:
        raise ValueError(f"{word} is not JSON")

    def parse_int(digits: str) -> int:
        if len(digits) > 400:  # Python refuses to read or print integers of more than some thousand digits
            raise ValueError(f"a number of {len(digits):,} digits")
        return int(digits)

    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
            raise ValueError(f'the key "{make_printable(twice)}" stands twice')
        return table

    try:
        text = raw.decode()
        value = json.loads(
            text, parse_constant=refuse_constant, parse_int=parse_int, object_pairs_hook=refuse_duplicates
        )
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
    """Return the library's message as a part of a sentence that says what was expected, and at which column."""
    fault = "a BOM inside the file" if "BOM" in e.msg else e.msg[:1].lower() + e.msg[1:]
    closing = "',', ']' or '}'" if "[" in text[: e.pos] else "',' or '}'"
    fault = fault.replace("expecting", "expected").replace("',' delimiter", closing).removesuffix(" at").rstrip(": ")
    return f"not valid JSON: {fault} at column {e.colno}"


def is_too_deep(value: object, left: int = DEPTH_LIMIT) -> bool:
    """Return whether lists and objects are nested more than `left` levels deep in a value."""
    inner: Iterable[object] = ()
    if isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, list):
        inner = value
    return left < 0 or any(is_too_deep(v, left - 1) for v in inner)


def read_parquet_rows(path: Path, name: str) -> Iterator[Row | str]:
    """Yield the rows of a Parquet file. DataError: it cannot be read."""
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        file = pyarrow.parquet.ParquetFile(path)
        check_columns(file.schema_arrow.names, name)
        for batch in file.iter_batches():
            for fields in batch.to_pylist():
                number += 1
                yield Row(f"{name}:{number}", fields)
    except (pyarrow.ArrowException, OSError, ValueError) as e:  # ValueError: a text that is not UTF-8
        raise DataError(f"{name}: not a readable Parquet file: {make_printable(str(e))}") from None


def read_arrow_rows(path: Path, name: str) -> Iterator[Row | str]:
    """Yield the rows of an Arrow file or stream, as the library datasets saves them. DataError: it cannot be read."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as file:
            try:
                batches = iter(pyarrow.ipc.open_stream(file))
            except pyarrow.ArrowInvalid:
                opened = pyarrow.ipc.open_file(file)
                batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
            number = 0
            for batch in batches:
                check_columns(batch.schema.names, name)
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(f"{name}:{number}", fields)
    except (pyarrow.ArrowException, OSError, ValueError) as e:
        raise DataError(f"{name}: not a readable Arrow file: {make_printable(str(e))}") from None


def check_columns(names: list[str], name: str) -> None:
    """Raise DataError if a column's name stands twice, of which one would be lost."""
    if twice := next((column for column in names if names.count(column) > 1), None):
        raise DataError(f"{name}: the column '{make_printable(twice)}' stands twice.")


READERS: dict[str, Callable[[Path, str], Iterator[Row | str]]] = {
    ".jsonl": read_json_lines,
    ".json": read_json_array,
    ".csv": read_csv_rows,
    ".tsv": read_tsv_rows,
    ".parquet": read_parquet_rows,
    ".txt": read_text_lines,
    ".arrow": read_arrow_rows,
}

SAVED_NOTES = (
    "dataset_info.json",
    "state.json",
    "dataset_dict.json",
)  # what datasets' save_to_disk writes besides rows
HUB_SUFFIXES = set(READERS) - {".txt"}  # in a data set's repository on the hub, a .txt file is no data
