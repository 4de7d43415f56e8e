"""Reading rows of text: JSON lines, JSON arrays, CSV, Parquet and plain text, strictly, each fault with file:line.

Own reader for JSON because the libraries' readers turn a missing label into None, keep NaN, coerce "2" to 2, give
no line number, and answer an empty file with StopIteration. CSV is the standard library's in strict mode, Parquet
pyarrow's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import DataError, make_printable
from .fields import rename_fields, require_fields, without_rows
from .files import read_rows
from .row import Row, hash_text, value_as_text

if TYPE_CHECKING:
    from ...recipe.sections import Data


# -- sets


def load_sets(data: Data, fields: Sequence[str]) -> tuple[list[Row], dict[str, list[Row]], dict[str, int]]:
    """(training rows, {valid, test}, counts) of a recipe's data; `fields` are those of the prompt.

    Rows of equal prompts never stand on both sides of a split, whatever else they hold. A valid or test file of the
    user's own is taken as it is; training rows that are also in it are counted, not dropped. A folder brings its own.
    """
    from ..sources.resolve import find_split_file

    counts = {"unreadable, dropped": 0, "left out by data.without": 0}

    def load(source: str, key: str) -> list[Row]:
        rows, faults = load_rows(source, key, data)
        counts["unreadable, dropped"] += len(faults)
        kept = without_rows(rows, data.without)
        counts["left out by data.without"] += len(rows) - len(kept)
        return kept

    rows = load(data.train, "data.train")
    parts: dict[str, list[Row]] = {}
    for which, place in (("test", data.test), ("valid", data.valid)):
        place = find_split_file(data.train, which) if place is None else place
        if isinstance(place, str):
            parts[which] = load(place, f"data.{which}")
        elif place is not None:
            rows, parts[which] = split_by_hash(rows, place.split, which, fields)
    if data.limit and data.limit < len(rows):
        _, rows = split_by_hash(rows, data.limit, "limit", fields)
    for which, part in parts.items():
        held = {row_content(row, fields) for row in part}
        counts[f"also in {which}"] = sum(row_content(row, fields) in held for row in rows)
    # files are often sorted by label; the first rows of a set must be like the rest of it (calibration looks at them)
    return (
        in_content_order(rows, fields),
        {which: in_content_order(part, fields) for which, part in parts.items()},
        counts,
    )


def load_rows(source: str, key: str, data: Data) -> tuple[list[Row], list[str]]:
    """(rows, faults) of a source as a recipe's data section names its fields. key: who asks, such as data.train."""
    from ..sources.resolve import resolve_text
    from . import dataset_info, formats

    if folder := dataset_info.find_data_folder(source):
        rows, faults = dataset_info.load_data_sets(source, folder, data.skip_bad_lines)
    else:
        rows, faults = read_rows(*resolve_text(source, key), data.skip_bad_lines)
    return formats.select_format(rename_fields(rows, data.fields), data.format), faults


def row_content(row: Row, fields: Sequence[str] = ()) -> str:
    """What tells rows apart: some fields of theirs as texts, or all that hold something."""
    names = fields or [name for name in sorted(row.fields) if row.fields[name] not in (None, "")]
    return json.dumps([(name, value_as_text(row.fields.get(name))) for name in names])


def split_by_hash(
    rows: list[Row], size: int | float, salt: str, fields: Sequence[str] = ()
) -> tuple[list[Row], list[Row]]:
    """(rest, taken): about `size` rows (or that share) by a hash of their content, equal rows on the same side."""
    wanted = round(size * len(rows)) if isinstance(size, float) else size
    keys = [hash_text(row_content(r, fields), salt) for r in rows]
    limit = sorted(keys)[wanted - 1] if 0 < wanted < len(rows) else max(keys)
    rest = [r for r, k in zip(rows, keys) if k > limit]
    if not rest:
        require_fields(rows, fields, "")  # rows that all lack the prompt's field are all equal
        raise DataError(f"data.{salt}: cannot take {size} of {len(set(keys)):,} different rows and leave some.")
    return rest, [r for r, k in zip(rows, keys) if k <= limit]


def sample_per_class(rows: list[Row], count: int, label: str, seed: int, which: str) -> list[Row]:
    """`count` rows of each label, drawn by a hash of their content and the seed; their order stays. DataError: too few."""
    drawn = sorted(range(len(rows)), key=lambda i: (hash_text(f"{seed} {row_content(rows[i])}", "few"), i))
    places: dict[str, list[int]] = {}
    for i in drawn:
        places.setdefault(value_as_text(rows[i].fields.get(label)), []).append(i)
    for name, there in places.items():
        if len(there) < count:
            raise DataError(
                f'data.per_class: {count}, and {which} has {len(there)} rows of the label "{make_printable(name)}".'
            )
    return [rows[i] for i in sorted(i for there in places.values() for i in there[:count])]


def in_content_order(rows: list[Row], fields: Sequence[str] = ()) -> list[Row]:
    """The rows in an order that their content decides, not the file's."""
    return sorted(rows, key=lambda row: (hash_text(row_content(row, fields), "order"), row_content(row)))
