"""`zoedge schema`: what a recipe may say, for editors and for people."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import UsageError
from ..recipe.schema import explain_field, recipe_schema


def describe_recipe(field: str | None = None) -> str:
    """Return the JSON schema of a recipe, or one of its keys in words, such as rule.lr. UsageError: no such key."""
    return explain_field(field) if field is not None else json.dumps(recipe_schema(), indent=1, ensure_ascii=False)


def write_schema(path: Path, text: str) -> None:
    """Write a schema to a file. UsageError: it cannot be written."""
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as e:
        raise UsageError(f"{path}: cannot write: {e.strerror}.") from None
