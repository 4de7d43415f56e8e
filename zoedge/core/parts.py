"""This module leads from a recipe's word to its class: the word is the name of a file, so that there is no registry to keep."""

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
    """Return the words that a folder defines: its files without a leading underscore."""
    path = PACKAGE.joinpath(*folder.split("."))
    return tuple(sorted(p.stem for p in path.glob("*.py") if not p.stem.startswith("_")))


def load_module(folder: str, word: str) -> ModuleType:
    """Import the file of a word."""
    return importlib.import_module(f"{PACKAGE.name}.{folder}.{word}")


def load_part(kind: str, word: str) -> type[Any]:
    """Return the class of a recipe's word: `rule: adamu` is Adamu in methods/rules/adamu.py. UsageError: no such word."""
    folder = PART_FOLDERS[kind]
    if word not in list_words(folder):
        raise UsageError(
            f"{kind}: no '{make_printable(word)}'. There is: "
            f"{', '.join(list_words(folder))}{suggest_nearest(word, list_words(folder))}"
        )
    part: type[Any] = vars(load_module(folder, word))["".join(w.capitalize() for w in word.split("_"))]
    return part


def find_word_by_id(kind: str, number: int) -> str:
    """Return the noise or rule whose class has the frozen id that a log's header names. UsageError: none has."""
    for word in list_words(PART_FOLDERS[kind]):
        part = load_part(kind, word)
        if number == (part.scheme if kind == "noise" else part.rule):
            return word
    raise UsageError(f"This version knows no {kind} with id {number}: the log was written by a newer zoedge.")
