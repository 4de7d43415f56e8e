"""`zoedge recipes ls | show | cp`: the recipes that come with zoedge."""

from __future__ import annotations

from pathlib import Path

from ..core.storage import write_new_text
from ..recipe.reading import find_recipe, list_shipped
from ..recipe.strict_yaml import read_text_file


def list_recipes() -> list[tuple[str, str]]:
    """Return the name and the first comment of every shipped recipe; '' where it begins with none."""
    recipes = []
    for path in list_shipped():
        line = path.read_text(encoding="utf-8").splitlines()[0]
        recipes.append((path.stem, line.lstrip("# ") if line.startswith("#") else ""))
    return recipes


def read_text(name: str) -> str:
    """Return a recipe as it is written. UsageError: there is no such recipe."""
    return read_text_file(find_recipe(name))


def copy_recipe(name: str, to: Path) -> Path:
    """Copy a recipe to a new file or into a folder; returns the file. UsageError: no such recipe, or the file exists."""
    text = read_text(name)
    target = to / find_recipe(name).name if to.is_dir() else to
    write_new_text(target, text)
    return target
