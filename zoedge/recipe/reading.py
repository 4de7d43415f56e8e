"""Find a recipe by its path or its shipped name, and read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UsageError, nearest, plain
from .check import check
from .overrides import overridden
from .recipe import Recipe
from .strict_yaml import Marks, read_yaml, text_of

# -- from YAML to a recipe


def find(name: str) -> Path:
    """A recipe's file: a path, else a shipped recipe's name."""
    if Path(name).is_file():
        return Path(name)
    known = {p.stem: p for p in shipped()}
    if (stem := name.removesuffix(".yaml")) in known:
        return known[stem]
    raise UsageError(
        f"No recipe '{plain(name)}': no such file, and not a shipped one ({', '.join(known)})"
        f"{nearest(Path(stem).name, known) or '.'}"
    )


def shipped() -> list[Path]:
    """The recipes that come with zoedge: beside the package in a checkout, inside it once installed."""
    here = Path(__file__).parents[1]
    for folder in (here / "recipes", here.parent / "recipes"):
        if folder.is_dir():
            return sorted(folder.glob("*.yaml"))
    return []


def read(name: str, overrides: list[str] | None = None) -> Recipe:
    """A recipe from a file (or a shipped name) and `key=value` overrides. UsageError lists every mistake at once."""
    return check(*tabled(name, overrides))


def tabled(name: str, overrides: list[str] | None = None) -> tuple[dict[str, Any], Marks, str, list[str]]:
    """What `check` takes: a recipe's table as it is written, where its keys stand, its file, and faults so far."""
    path = find(name)
    text = text_of(path)
    table, marks = read_yaml(text, str(path))
    if not isinstance(table, dict):
        raise UsageError(f"{path}: a recipe is a table of keys and values; see `zoedge recipes show quickstart`.")
    return overridden(table, marks, str(path), overrides or [], path.stem)


def made(table: dict[str, Any], marks: Marks, where: str, overrides: list[str], stem: str = "run") -> Recipe:
    """The recipe of a table and `key=value` overrides, named after `stem`. UsageError lists every mistake at once."""
    return check(*overridden(table, marks, where, overrides, stem))
