"""This module reads the candidates of a row of multiple choice, and which of them its label means.

Data sets write candidates as fields of their own, a list, a list of {label, text}, {text: [...], label: [...]} or
{A: ..., B: ...}, and the right one as a number from 0, a letter, its name or its text. Where a label can be read in two ways,
the other rows of the set decide, and if they do not, zoedge asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ...errors import DataError, make_printable
from ..rows.row import Row, raise_faults, read_field_text, value_as_text

NUMBER, LETTER, TEXT, NAME = "its number, from 0", "its letter", "its text", "its name"


class Candidates(NamedTuple):
    """The candidates of a row as they are written, equal ones included.

    Attributes:
        texts: the candidates.
        names: what the row calls each of them, or none.
        are_numbers: whether they are JSON numbers.
    """

    texts: list[str]
    names: list[str]
    are_numbers: bool

    @property
    def different(self) -> list[str]:
        """The different candidates, in their order."""
        return list(dict.fromkeys(self.texts))


def read_candidates(row: Row, fields: Sequence[str]) -> Candidates:
    """Return the candidates in some fields of a row. DataError: there are fewer than two, or one is no text."""
    values: list[Any] = []
    names: list[str] = []
    for field in fields:
        value = row.fields.get(field)
        if isinstance(value, dict) and isinstance(value.get("text"), list):
            values += value["text"]
            names += map(value_as_text, value["label"] if isinstance(value.get("label"), list) else [])
        elif isinstance(value, dict) and all(isinstance(text, (str, int, float)) for text in value.values()):
            values += value.values()
            names += value
        elif isinstance(value, list) and all(isinstance(item, dict) and "text" in item for item in value):
            values += [item["text"] for item in value]
            names += [value_as_text(item["label"]) for item in value if "label" in item]
        elif isinstance(value, list):
            values += value
        else:
            read_field_text(row, field)
            values.append(value)
    shown = ", ".join(map(make_printable, fields))
    texts = [read_field_text(Row(row.where, {shown: value}), shown) for value in values]
    if len(set(texts)) < 2:
        raise DataError(f"{row.where}: {len(set(texts))} candidate in {shown}: no choice.")
    are_numbers = all(isinstance(value, (int, float)) for value in values)
    return Candidates(texts, names if len(names) == len(texts) == len(set(names)) else [], are_numbers)


def read_label(label: Any, candidates: Candidates) -> dict[str, int]:
    """Return which candidate a label means, by each way in which it can be read; none: it means no candidate."""
    text, count = value_as_text(label), len(candidates.texts)
    if text in candidates.names:
        return {NAME: candidates.names.index(text)}
    readings: dict[str, int] = {}
    number = int(label) if isinstance(label, float) and label.is_integer() else label
    is_number = isinstance(number, int) and not isinstance(number, bool)
    if (is_number or (text.isascii() and text.isdecimal() and len(text) < 9)) and 0 <= int(number) < count:
        readings[NUMBER] = int(number)
    if text in candidates.texts and not (is_number and readings and not candidates.are_numbers):
        readings[TEXT] = candidates.texts.index(text)
    letter = text.strip("().: ").upper()
    if len(letter) == 1 and letter.isascii() and 0 <= ord(letter) - ord("A") < count:
        readings[LETTER] = ord(letter) - ord("A")
    return readings


def read_right(rows: list[Row], every: list[Candidates], field: str) -> list[list[int]]:
    """Return for each row the numbers of the right ones among its different candidates.

    Args:
        rows: the rows.
        every: the candidates of each.
        field: the field with the label: one label, or a list of right texts.

    Raises:
        DataError: labels count from 1, or a label means no candidate, or two of them.
    """
    readings: dict[str, list[dict[str, int]]] = {}
    faults: dict[str, DataError] = {}
    for row, candidates in zip(rows, every):
        try:
            readings[row.where] = read_row(row, candidates, field)
        except CountsFromOne:
            raise
        except DataError as e:
            faults[row.where] = e
    sure = {
        next(iter(ways)) for found in readings.values() for ways in found if len(set(ways.values())) == len(ways) == 1
    }
    right: list[list[int]] = []
    for row, candidates in zip(rows, every):
        numbers = []
        for ways in readings.get(row.where, []):
            places = {candidates.texts[number] for number in ways.values()}
            agreed = [way for way in ways if sure == {way}]
            if len(places) > 1 and not agreed:
                faults[row.where] = DataError(describe_ambiguity(row, ways, field))
            numbers.append(candidates.different.index(candidates.texts[ways[(agreed or list(ways))[0]]]))
        right.append(numbers)
    raise_faults(faults)
    return right


def read_row(row: Row, candidates: Candidates, field: str) -> list[dict[str, int]]:
    """Return the readings of each label of a row. DataError: one has none, or labels count from 1."""
    value = row.fields.get(field)
    if isinstance(value, list) and value:  # right texts; a number among them is a place only if it is no text
        found = [
            {TEXT: candidates.texts.index(value_as_text(label))}
            if value_as_text(label) in candidates.texts
            else {}
            if isinstance(label, str)
            else read_label(label, candidates)
            for label in value
        ]
        labels = value
    else:
        read_field_text(row, field)
        labels, found = [value], [read_label(value, candidates)]
    for label, ways in zip(labels, found):
        if not ways:
            raise describe_unread(row, label, candidates, field)
    return found


class CountsFromOne(DataError):
    """A label is the number of candidates: if all of them count from 1, the other rows' labels are wrong too."""


def describe_unread(row: Row, label: Any, candidates: Candidates, field: str) -> DataError:
    """Return the error of a label that means no candidate."""
    shown = ", ".join(make_printable(text, 40) for text in candidates.texts[:8])
    name, text = make_printable(field), make_printable(value_as_text(label))
    fault = f'{row.where}: "{text}" ({name}) is not a candidate: {shown}.'
    if text != str(len(candidates.texts)):
        return DataError(fault)
    return CountsFromOne(
        f"{fault} Numbers count from 0. If these labels count from 1, take 1 off each: "
        f"jq -c '.{name} |= (tonumber - 1)' OLD.jsonl > NEW.jsonl"
    )


def describe_ambiguity(row: Row, ways: dict[str, int], field: str) -> str:
    """Return the message for a label that means two candidates."""
    meant = " and ".join(f"candidate {number + 1} by {way}" for way, number in ways.items())
    text = make_printable(value_as_text(row.fields[field]))
    return (
        f'{row.where}: "{text}" ({make_printable(field)}) is {meant}. If it is a text, write a list, ["{text}"]; if it is a '
        "number, write a JSON number, and the candidates as texts."
    )
