"""This module reads rows from .csv and .tsv files, strictly.

Where a file is written otherwise, the message has a command that writes it as it is read here.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from ...errors import DataError, make_printable
from .row import Row

LINE_LIMIT = 1 << 20  # bytes of a line


def read_csv_rows(path: Path, name: str, delimiter: str = ",") -> Iterator[Row | str]:
    """Yield for each record of a CSV file with a header its row, or a sentence about what is wrong with it.

    DataError: the header names a column twice or is that of another kind of file, or the file is not valid UTF-8 or CSV.
    """
    former = csv.field_size_limit(LINE_LIMIT)  # csv's own is 128 KiB
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(read_csv_lines(file, name), strict=True, delimiter=delimiter)
            header = list(reader.fieldnames or [])
            check_header(header, name, delimiter)
            for fields in reader:
                where = f"{name}:{reader.line_num}"
                if None in fields or None in fields.values():  # so the library marks too many and too few values
                    yield f"{where}: not {len(header)} columns, as in the header"
                elif any(value[:1] == " " and value.lstrip().startswith('"') for value in fields.values()):
                    way_out = rewrite(name, "skipinitialspace=True")
                    yield f"{where}: a space before a quote, so that the quotes would be text. {way_out}"
                else:
                    yield Row(where, fields)
    except UnicodeDecodeError as e:
        raise DataError(f"{name}:{find_invalid_utf8(path)}: not UTF-8 ({e.reason}).") from None
    except csv.Error as e:  # after a lost quote, no later record is certain, so that none can be skipped
        raise DataError(f"{name}:{reader.line_num + 1}: not valid CSV: {e}. Mend the line.") from None
    finally:
        csv.field_size_limit(former)


def read_tsv_rows(path: Path, name: str) -> Iterator[Row | str]:
    """Yield what `read_csv_rows` does, of a file whose columns are separated by tabs."""
    return read_csv_rows(path, name, "\t")


def check_header(header: list[str], name: str, delimiter: str) -> None:
    """Refuse a header with a column twice, or one that says that the file is written otherwise.

    DataError: it says which, with a command that writes the file as it is read here.
    """
    if len(set(header)) != len(header):
        raise DataError(f"{name}:1: a column's name stands twice.")
    if len(header) == 1 and delimiter == ",":
        for other, what in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if other in header[0]:
                way_out = rewrite(name, "delimiter='\\t'" if other == "\t" else f"delimiter='{other}'")
                raise DataError(f"{name}:1: its columns are separated by {what}, and a .csv file has commas. {way_out}")
    if any(column != column.strip() for column in header):
        raise DataError(f"{name}:1: spaces stand around a column's name. {rewrite(name, 'skipinitialspace=True')}")


def rewrite(name: str, option: str) -> str:
    """Return the sentence with the command that rewrites a file. option: of csv.reader, with which the file is read."""
    return (
        "Rewrite it: python -c \"import csv; csv.writer(open('NEW.csv', 'w', newline='')).writerows("
        f"[x.strip() for x in row] for row in csv.reader(open('{make_printable(name, 200)}', newline=''), {option}))\""
    )


def read_csv_lines(file: TextIO, name: str) -> Iterator[str]:
    """Yield the lines of a text. DataError: one is too long; csv itself limits a field, after it has read the line."""
    number = 0
    while line := file.readline(LINE_LIMIT + 1):
        number += 1
        if len(line) > LINE_LIMIT:
            raise DataError(f"{name}:{number}: longer than 1 MiB.")
        yield line


def find_invalid_utf8(path: Path) -> int:
    """Return the number of the first line that is not UTF-8, which the decoder's error does not know."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                raw.decode()
            except UnicodeDecodeError:
                return number
    return 0
