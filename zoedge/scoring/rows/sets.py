"""This module loads, splits, samples and orders the training, validation and test rows of a recipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from ...errors import DataError, make_printable
from .fields import check_names, rename_fields, require_fields, without_rows
from .files import read_rows
from .row import Row, hash_text, value_as_text

if TYPE_CHECKING:
    from ...recipe.sections import Data


def load_sets(
    data: Data,
    fields: Sequence[str],
    content: Callable[[Row], str] | None = None,
    reads: Collection[str] | None = None,
) -> tuple[list[Row], dict[str, list[Row]], dict[str, int]]:
    """Return the training rows of a recipe, its other sets {"valid", "test"} as far as there are any, and counts.

    Rows with equal prompts are never on both sides of a split, whatever their other fields hold. A validation or test file
    of the user's is taken as it is: training rows that are also in it are counted, but not dropped. Where data.train is a
    folder, the other sets are its files unless the recipe names others.

    Args:
        data: the recipe's section.
        fields: the fields of the prompt; none: all.
        content: returns what a row is trained on, by which rows are equal; None: the text of these fields.
        reads: the fields that the task may read; None: any.

    Raises:
        DataError: a file or a row is not valid, data.fields has a name that nothing reads, or there are too few rows.
    """
    from ..sources.resolve import find_split_file

    if reads is not None:
        check_names(data.fields, {*reads, *data.without})

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
        source = find_split_file(data.train, which) if place is None else place
        if isinstance(source, str):
            parts[which] = load(source, f"data.{which}")
        elif source is not None:
            rows, parts[which] = split_by_hash(rows, source.split, which, fields, content)
    if data.limit and data.limit < len(rows):
        _, rows = split_by_hash(rows, data.limit, "limit", fields, content)
    for which, part in parts.items():
        contents = {equality_text(row, fields, content) for row in part}
        counts[f"also in {which}"] = sum(equality_text(row, fields, content) in contents for row in rows)
    # files are often sorted by label, and calibration reads the first rows of a set, which must be like the rest of it
    return (
        in_content_order(rows, fields),
        {which: in_content_order(part, fields) for which, part in parts.items()},
        counts,
    )


def load_rows(source: str, key: str, data: Data) -> tuple[list[Row], list[str]]:
    """Return the rows of a source with data.fields and data.format applied, and the faults of the lines that were dropped.

    key: the recipe's key that names the source, such as data.train, for messages.
    """
    from ..sources.places import locate
    from ..sources.resolve import resolve_text
    from . import dataset_info, formats

    source = locate(source)
    if folder := dataset_info.find_data_folder(source):
        rows, faults = dataset_info.load_data_sets(source, folder, data.skip_bad_lines)
    else:
        rows, faults = read_rows(*resolve_text(source, key), data.skip_bad_lines)
    return formats.select_format(rename_fields(rows, data.fields), data.format), faults


def row_content(row: Row, fields: Sequence[str] = ()) -> str:
    """Return a text that is the same for equal rows: of these fields, or if there are none, of all that are not empty."""
    names = fields or [name for name in sorted(row.fields) if row.fields[name] not in (None, "")]
    return json.dumps([(name, value_as_text(row.fields.get(name))) for name in names])


def equality_text(row: Row, fields: Sequence[str], content: Callable[[Row], str] | None) -> str:
    """Return a text that is the same for equal rows: `content` says it, or of a row that is not valid its fields."""
    try:
        return row_content(row, fields) if content is None else content(row)
    except DataError:
        return row_content(row, fields)


def grouped_contents(rows: list[Row], fields: Sequence[str], content: Callable[[Row], str] | None) -> list[str]:
    """Return for each row a text that is the same for equal rows: the first, in the alphabet, of the equal rows' fields.

    So the split of a set in which no rows are equal but in all their fields does not depend on `content`.
    """
    texts = [row_content(row, fields) for row in rows]
    equal = [equality_text(row, fields, content) for row in rows]
    first: dict[str, str] = {}
    for key, text in zip(equal, texts):
        first[key] = min(text, first.get(key, text))
    return [first[key] for key in equal]


def split_by_hash(
    rows: list[Row],
    size: int | float,
    salt: str,
    fields: Sequence[str] = (),
    content: Callable[[Row], str] | None = None,
) -> tuple[list[Row], list[Row]]:
    """Take rows out of a set by a hash of their content, and return the rest and the rows taken.

    Equal rows are on the same side, so that a few rows more than `size` may be taken.

    Args:
        size: how many rows to take, or as a float which share of all.
        salt: the recipe's key below data, which makes splits for different purposes independent.
        fields: what decides whether rows are equal, as in `row_content`.
        content: what decides it instead, if it is given.

    Raises:
        DataError: no row would be left.
    """
    count = round(size * len(rows)) if isinstance(size, float) else size
    hashes = [hash_text(text, salt) for text in grouped_contents(rows, fields, content)]
    limit = sorted(hashes)[count - 1] if 0 < count < len(rows) else max(hashes)
    rest = [row for row, number in zip(rows, hashes) if number > limit]
    if not rest:
        require_fields(rows, fields, "")  # rows that all lack the prompt's field are all equal
        raise DataError(f"data.{salt}: cannot take {size} of {len(set(hashes)):,} different rows and leave some.")
    taken = [row for row, number in zip(rows, hashes) if number <= limit]
    return rest, taken


def sample_per_class(rows: list[Row], count: int, label: str, seed: int, which: str) -> list[Row]:
    """Return `count` rows of each label, in the order in which they stand. They are drawn by a hash of content and seed.

    Args:
        label: the field with the label.
        which: the set's name, for the message.

    Raises:
        DataError: a label has fewer rows.
    """
    drawn = sorted(range(len(rows)), key=lambda i: (hash_text(f"{seed} {row_content(rows[i])}", "few"), i))
    by_label: dict[str, list[int]] = {}
    for i in drawn:
        by_label.setdefault(value_as_text(rows[i].fields.get(label)), []).append(i)
    for name, numbers in by_label.items():
        if len(numbers) < count:
            raise DataError(
                f'data.per_class: {count}, and {which} has {len(numbers)} rows of the label "{make_printable(name)}".'
            )
    sampled = [i for numbers in by_label.values() for i in numbers[:count]]
    return [rows[i] for i in sorted(sampled)]


def in_content_order(rows: list[Row], fields: Sequence[str] = ()) -> list[Row]:
    """Return the rows in an order that depends on their content alone, and not on the file's order."""
    return sorted(rows, key=lambda row: (hash_text(row_content(row, fields), "order"), row_content(row)))
