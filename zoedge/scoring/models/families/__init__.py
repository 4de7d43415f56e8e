"""The families of architectures that have a fast forward, one a file."""

from __future__ import annotations

from typing import Any

from ....core.parts import list_words, load_module
from ....errors import DataError


def load_family(config: Any) -> Any:
    """The module of facts of a model's family; an unknown family gets a sentence."""
    family = config.model_type
    if family not in list_words("scoring.models.families"):
        known = ", ".join(list_words("scoring.models.families"))
        raise DataError(f"Model family '{family}' is not supported yet. zoedge knows: {known}.")
    if getattr(config, "use_bidirectional_attention", None):
        raise DataError(
            f"This {family} model looks both ways (use_bidirectional_attention): zoedge scores what comes next."
        )
    return load_module("scoring.models.families", family)


def check_head(task: str, head: str, facts: Any) -> None:
    """DataError where a task's loss reads another head than the family has."""
    if head != facts.HEAD:
        word = {"CausalLM": "reads what comes next", "MaskedLM": "fills a mask"}
        other = {"CausalLM": "name: mlm", "MaskedLM": "name: classify"}[head]
        raise DataError(
            f"task: {task} {word[head]}, and this base {word[facts.HEAD]}. Use task: {{{other}}}, or another model.source."
        )
