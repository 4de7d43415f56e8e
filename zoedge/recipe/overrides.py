"""This module applies `key=value` texts of the command line to a recipe's table."""

from __future__ import annotations

import re
from typing import Any

from ..core.parts import PART_FOLDERS
from ..errors import UsageError, make_printable
from .strict_yaml import MAX_DEPTH, Position, Positions, read_yaml


def merge_overrides(
    table: dict[str, Any], marks: Positions, where: str, overrides: list[str], stem: str
) -> tuple[dict[str, Any], Positions, str, list[str]]:
    """Return what `check` takes: the table with `key=value` texts applied, its marks, its name, and the texts' mistakes.

    A table without a name is named after `stem`, the file's. `table` and `marks` are changed in place.
    """
    wrong: list[str] = []
    for override in overrides:
        try:
            apply_override(table, marks, override)
        except UsageError as e:
            wrong.append(f"{where} (key=value): {e}")
    if table.get("name") is None:
        table["name"] = re.sub(r"[^A-Za-z0-9._-]", "-", stem).lstrip("._-")[:64] or "run"
    return table, marks, where, wrong


def apply_override(table: dict[str, Any], marks: Positions, override: str) -> None:
    """Set `a.b=value`; the value is YAML. A bare word is turned into a table where a key of it is set."""
    key, equals, text = override.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path) or len(path) > MAX_DEPTH:
        raise UsageError(f"'{make_printable(override)}' is not key=value, such as rule.lr=1e-3.")
    try:
        value, _ = read_yaml(text, make_printable(override))
    except UsageError as e:
        raise UsageError(f"{e} Quotes make it a text: {make_printable(key)}='\"...\"'.") from None
    set_value(table, marks, path, value, f"'{make_printable(override)}': ")


def set_value(
    table: dict[str, Any],
    marks: Positions,
    path: tuple[str, ...],
    value: Any,
    prefix: str = "",
    place: Position = (0, 0),
) -> None:
    """Set a value that stands at `place`. UsageError, beginning with `prefix`: a value stands where a table should."""
    for i, word in enumerate(path[:-1]):
        inner = table.get(word)
        if isinstance(inner, str) and word in PART_FOLDERS and i == 0:
            inner = {"name": inner}
        elif inner is None:
            inner = {}
        elif not isinstance(inner, dict):
            raise UsageError(f"{prefix}{make_printable('.'.join(path[: i + 1]))} is not a table of keys.")
        table[word] = inner
        table = inner
    table[path[-1]] = value
    for known in [m for m in marks if m[: len(path)] == path]:
        del marks[known]
    for i in range(1, len(path)):
        marks.setdefault(path[:i], place)
    marks[path] = place
