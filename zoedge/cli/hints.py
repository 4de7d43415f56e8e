"""This module tells what to type instead of an option that there is not, such as train.steps=3 for --steps 3."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import make_printable

TAKES_OVERRIDES = ("finetune", "validate", "preview", "estimate", "sweep")


def suggest_override(message: str, arguments: Sequence[str]) -> str:
    """Return the sentence for an option that is a key of a recipe, or another tool's word for one; "": it is neither.

    Args:
        message: click's, which names the option.
        arguments: what was typed.
    """
    found = re.search(r"No such option:? '?(--?[\w.-]+)'?", message)
    if found is None or not any(command in arguments for command in TAKES_OVERRIDES):
        return ""
    key = find_key(found[1].lstrip("-").replace("-", "_"))
    if not key:
        return ""
    override = f"{key}={find_value(found[1], arguments)}"
    return f"No such option: {found[1]}. Settings of a recipe are written key=value: {override}"


def find_key(word: str) -> str:
    """Return the recipe's key that an option means: its own last word, or that of another tool; "": none, or several."""
    from ..recipe.foreign import FOREIGN_KEYS
    from .completing import list_keys

    keys = list_keys()
    if word in keys:
        return word
    for section in ("train", "rule", "model", "data", "space", "estimator", "eval", "output"):
        if f"{section}.{word}" in keys:
            return f"{section}.{word}"
    return FOREIGN_KEYS.get(word, "").partition(" ")[0].partition(":")[0]


def find_value(option: str, arguments: Sequence[str]) -> str:
    """Return the value that stands behind an option, or VALUE."""
    for i, argument in enumerate(arguments):
        if argument.startswith(f"{option}="):
            return make_printable(argument.partition("=")[2])
        if argument == option and i + 1 < len(arguments) and not arguments[i + 1].startswith("--"):
            return make_printable(arguments[i + 1])
    return "VALUE"
