"""Any bytes as JSON lines or CSV, read strictly and with bad lines dropped."""

from __future__ import annotations

import json

import atheris
from common import FOLDER, fuzz

with atheris.instrument_imports(include=["zoedge"]):
    from zoedge.errors import DataError
    from zoedge.scoring.rows import files, sets


def target(data: bytes) -> None:
    path = FOLDER / ("rows.csv" if data[:1] == b"c" else "rows.jsonl")
    path.write_bytes(data[1:])
    found, faults = files.read_rows(path, path.name, skip_bad=True)
    assert all(isinstance(row.fields, dict) and row.where.startswith(path.name) for row in found)
    for row in found:
        sets.row_content(row).encode()
        if path.suffix == ".jsonl":
            json.dumps(row.fields, allow_nan=False)
    try:
        strict, none = files.read_rows(path, path.name)
    except DataError:
        assert faults
    else:
        assert strict == found and not faults and not none


if __name__ == "__main__":
    good = b'{"text": "a \\u00e9 film", "label": 1, "more": [1.5, null, true, {"x": "y"}]}\n'
    fuzz(target, [b"j" + good, b"j\xef\xbb\xbf" + good * 3, b"j[1]\n{}", b'ctext,label\n"a, ""b""",c\n', b"c"])
