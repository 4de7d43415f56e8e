"""This module finds a recipe by its path or its shipped name, and reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UsageError, make_printable, suggest_nearest
from .check import check
from .overrides import merge_overrides
from .recipe import Recipe
from .strict_yaml import Positions, read_text_file, read_yaml

# -- from YAML to a recipe


def find_recipe(name: str) -> Path:
    """Return the file of a recipe that is named by its path, or by the name of a shipped one."""
    if Path(name).is_file():
        return Path(name)
    known = {p.stem: p for p in list_shipped()}
    if (stem := name.removesuffix(".yaml")) in known:
        return known[stem]
    raise UsageError(
        f"No recipe '{make_printable(name)}': no such file, and not a shipped one ({', '.join(known)})"
        f"{suggest_nearest(Path(stem).name, known) or '.'}"
    )


def list_shipped() -> list[Path]:
    """Return the files of the shipped recipes. They lie beside the package in a checkout, inside it once installed."""
    here = Path(__file__).parents[1]
    for folder in (here / "recipes", here.parent / "recipes"):
        if folder.is_dir():
            return sorted(folder.glob("*.yaml"))
    return []


def read_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """Return the recipe of a file (or a shipped name) and of `key=value` overrides. UsageError: it lists every mistake."""
    return check(*read_table(name, overrides))


def read_table(name: str, overrides: list[str] | None = None) -> tuple[dict[str, Any], Positions, str, list[str]]:
    """Return what `check` takes: a recipe's table as it is written, where its keys stand, its file, and the mistakes so far."""
    path = find_recipe(name)
    text = read_text_file(path)
    table, marks = read_yaml(text, str(path))
    if not isinstance(table, dict):
        raise UsageError(f"{path}: a recipe is a table of keys and values; see `zoedge recipes show quickstart`.")
    return merge_overrides(table, marks, str(path), overrides or [], path.stem)


def build_recipe(
    table: dict[str, Any], marks: Positions, where: str, overrides: list[str], stem: str = "run"
) -> Recipe:
    """Return the recipe of a table and `key=value` overrides, named after `stem`. UsageError: it lists every mistake."""
    return check(*merge_overrides(table, marks, where, overrides, stem))
