"""Word -> file -> class. The file's name is the recipe's word: no registry, no list to keep up to date."""

from __future__ import annotations

import importlib
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import UsageError, make_printable, suggest_nearest

PACKAGE = Path(__file__).parent.parent
PART_FOLDERS = {
    "noise": "methods.noise",
    "estimator": "methods.estimators",
    "rule": "methods.rules",
    "space": "methods.spaces",
    "task": "scoring.tasks",
}


@lru_cache
def list_words(folder: str) -> tuple[str, ...]:
    """The words a folder defines: its files without a leading underscore."""
    here = PACKAGE.joinpath(*folder.split("."))
    return tuple(sorted(p.stem for p in here.glob("*.py") if not p.stem.startswith("_")))


def load_module(folder: str, word: str) -> ModuleType:
    return importlib.import_module(f"{PACKAGE.name}.{folder}.{word}")


def load_part(kind: str, word: str) -> type[Any]:
    """The class behind a recipe's word: `rule: zo_adamu` is ZoAdamu in rules/zo_adamu.py."""
    folder = PART_FOLDERS[kind]
    if word not in list_words(folder):
        raise UsageError(
            f"{kind}: no '{make_printable(word)}'. There is: "
            f"{', '.join(list_words(folder))}{suggest_nearest(word, list_words(folder))}"
        )
    made: type[Any] = getattr(load_module(folder, word), "".join(w.capitalize() for w in word.split("_")))
    return made


def find_word_by_id(kind: str, attribute: str, number: int) -> str:
    """The word whose class has the frozen id that a log's header names."""
    for word in list_words(PART_FOLDERS[kind]):
        if getattr(load_part(kind, word), attribute) == number:
            return word
    raise UsageError(f"This version knows no {kind} with id {number}: the log was written by a newer zoedge.")
