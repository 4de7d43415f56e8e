"""`key=value` texts of the command line, applied to a recipe's table."""

from __future__ import annotations

import re
from typing import Any

from ..core.parts import FOLDERS
from ..errors import UsageError, plain
from .strict_yaml import DEPTH, Marks, Place, read_yaml


def overridden(
    table: dict[str, Any], marks: Marks, where: str, overrides: list[str], stem: str
) -> tuple[dict[str, Any], Marks, str, list[str]]:
    wrong: list[str] = []
    for override in overrides:
        try:
            apply(table, marks, override)
        except UsageError as e:
            wrong.append(f"{where} (key=value): {e}")
    if table.get("name") is None:
        table["name"] = re.sub(r"[^A-Za-z0-9._-]", "-", stem).lstrip("._-")[:64] or "run"
    return table, marks, where, wrong


def apply(table: dict[str, Any], marks: Marks, override: str) -> None:
    """Set `a.b=value`; the value is YAML. A bare word is turned into a table where a key of it is set."""
    key, equals, text = override.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path) or len(path) > DEPTH:
        raise UsageError(f"'{plain(override)}' is not key=value, such as rule.lr=1e-3.")
    try:
        value, _ = read_yaml(text, plain(override))
    except UsageError as e:
        raise UsageError(f"{e} Quotes make it a text: {plain(key)}='\"...\"'.") from None
    put(table, marks, path, value, f"'{plain(override)}': ")


def put(
    table: dict[str, Any], marks: Marks, path: tuple[str, ...], value: Any, said: str = "", place: Place = (0, 0)
) -> None:
    """Set a value that stands at `place`. UsageError, beginning with `said`: a value stands where a table should."""
    for i, word in enumerate(path[:-1]):
        inner = table.get(word)
        if isinstance(inner, str) and word in FOLDERS and i == 0:
            inner = {"name": inner}
        elif inner is None:
            inner = {}
        elif not isinstance(inner, dict):
            raise UsageError(f"{said}{plain('.'.join(path[: i + 1]))} is not a table of keys.")
        table[word] = inner
        table = inner
    table[path[-1]] = value
    for known in [m for m in marks if m[: len(path)] == path]:
        del marks[known]
    for i in range(1, len(path)):
        marks.setdefault(path[:i], place)
    marks[path] = place
