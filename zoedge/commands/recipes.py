"""`zoedge recipes ls | show | cp`: the recipes that come with zoedge."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..core.storage import write_new_text
from ..recipe.reading import find_recipe, list_shipped
from ..recipe.strict_yaml import read_text_file, read_yaml

# the measured time of a whole run on 2 cores of a shared machine (README.md, docs/auto.md)
MEASURED_TIMES = {
    "quickstart": "2 min",
    "two-sided": "4 min",
    "first-film": "7 min",
    "first-products": "7 min",
    "first-topics": "7 min",
    "first-questions": "5 min",
}
GROUPS = ("start here", "spaces", "methods", "data sets of the papers")


class ShippedRecipe(NamedTuple):
    """A recipe that comes with zoedge.

    Attributes:
        group: one of GROUPS.
        needs: its model and rows, and how long it takes where that was measured.
        comment: its first line; "": it has none.
        text: all of it.
    """

    name: str
    group: str
    needs: str
    comment: str
    text: str


def list_recipes() -> list[ShippedRecipe]:
    """Return every shipped recipe, those to begin with first."""
    recipes = [describe_recipe(path) for path in list_shipped()]
    starters = list(MEASURED_TIMES)
    return sorted(
        recipes, key=lambda r: (GROUPS.index(r.group), starters.index(r.name) if r.name in starters else 0, r.name)
    )


def group_recipes(words: list[str]) -> dict[str, list[ShippedRecipe]]:
    """Return the shipped recipes by group. words: all of them must stand in a recipe's name or text, in whatever case."""
    groups: dict[str, list[ShippedRecipe]] = {group: [] for group in GROUPS}
    for recipe in list_recipes():
        if all(word.lower() in f"{recipe.name} {recipe.text}".lower() for word in words):
            groups[recipe.group].append(recipe)
    return groups


def describe_recipe(path: Path) -> ShippedRecipe:
    """Return what a list says of a recipe: it is grouped by its rows and its space."""
    from ..scoring.sources.catalog import PACKAGED_MODELS, PACKAGED_TEXTS

    text = path.read_text(encoding="utf-8")
    first = text.splitlines()[0]
    table, _ = read_yaml(text, str(path))
    model, rows, space = table["model"]["source"], table["data"]["train"], table.get("space", "lora")
    space = space["name"] if isinstance(space, dict) else space
    if path.stem in MEASURED_TIMES:
        group = GROUPS[0]
    elif rows not in PACKAGED_TEXTS:
        group = GROUPS[3]
    else:
        group = GROUPS[1] if space != "lora" else GROUPS[2]
    needs = "packaged" if model in PACKAGED_MODELS and rows in PACKAGED_TEXTS else model.rpartition("/")[2] + ", "
    needs += "" if rows in PACKAGED_TEXTS else "own rows" if rows.startswith("data/") else "hub rows"
    needs += f", {MEASURED_TIMES[path.stem]}" if path.stem in MEASURED_TIMES else ""
    return ShippedRecipe(path.stem, group, needs, first.lstrip("# ") if first.startswith("#") else "", text)


def read_text(name: str) -> str:
    """Return a recipe as it is written. UsageError: there is no such recipe."""
    return read_text_file(find_recipe(name))


def copy_recipe(name: str, to: Path) -> Path:
    """Copy a recipe to a new file or into a folder; returns the file. UsageError: no such recipe, or the file exists."""
    text = read_text(name)
    target = to / find_recipe(name).name if to.is_dir() else to
    write_new_text(target, text)
    return target
