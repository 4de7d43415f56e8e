"""This module finds a recipe by its path or its shipped name, and reads it."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..errors import UsageError, make_printable
from .check import check
from .foreign import CHANGE_BY_KEY, FOREIGN_KEYS, REASON_BY_KEY
from .overrides import merge_overrides
from .recipe import Recipe
from .strict_yaml import Positions, read_text_file, read_yaml

ROW_ENDINGS = (
    ".jsonl",
    ".csv",
    ".parquet",
    ".txt",
    ".tsv",
)  # of files of rows, which are taken for a recipe by mistake

# -- from YAML to a recipe


def find_recipe(name: str) -> Path:
    """Return the file of a recipe that is named by its path, or by the name of a shipped one."""
    path = Path(name)
    if path.suffix.lower() in ROW_ENDINGS and path.exists():
        shown = make_printable(name)
        raise UsageError(
            f"{shown}: these are rows, and a recipe is a YAML file that names rows. `zoedge init {shown}` writes one."
        )
    if path.is_file():
        return path
    known = {p.stem: p for p in list_shipped()}
    if (stem := name.removesuffix(".yaml")) in known:
        return known[stem]
    near = get_close_matches(Path(stem).name, known, n=3, cutoff=0.4)
    hint = f"Did you mean {join_words(near)}? " if near else ""
    raise UsageError(
        f"No recipe '{make_printable(name)}': no such file, and not a shipped one. {hint}`zoedge recipes ls` lists them."
    )


def join_words(words: list[str]) -> str:
    """Return some words as a sentence has them: a, b or c."""
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))


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
    if isinstance(table, dict) and is_foreign(table):
        shown = make_printable(str(path))
        raise UsageError(
            f"{shown}: this is another tool's configuration, and no recipe. `zoedge import-config {shown} -o recipe.yaml` "
            "makes one of it."
        )
    if not isinstance(table, dict):
        raise UsageError(f"{path}: a recipe is a table of keys and values; see `zoedge recipes show quickstart`.")
    return merge_overrides(table, marks, str(path), overrides or [], path.stem)


def is_foreign(table: dict[str, Any]) -> bool:
    """Return whether a table has other tools' keys, and neither a version nor a recipe's base or rows."""
    foreign = [key for key in table if key in FOREIGN_KEYS or key in REASON_BY_KEY or key in CHANGE_BY_KEY]
    model, data = table.get("model"), table.get("data")
    is_own = (isinstance(model, dict) and "source" in model) or (isinstance(data, dict) and "train" in data)
    return len(foreign) > 1 and "version" not in table and not is_own


def build_recipe(
    table: dict[str, Any], marks: Positions, where: str, overrides: list[str], stem: str = "run"
) -> Recipe:
    """Return the recipe of a table and `key=value` overrides, named after `stem`. UsageError: it lists every mistake."""
    return check(*merge_overrides(table, marks, where, overrides, stem))
