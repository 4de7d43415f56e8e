"""This module loads the rows that a recipe names, and tokenises them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..recipe.sections import Data, Split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..core.types import AbstractTask
    from .tasks._examples import Examples


@dataclass
class Datasets:
    """The tokenised sets of a run. counts: by set, how many rows were truncated, dropped, or left out for what reason."""

    train: Examples
    valid: Examples | None
    test: Examples | None
    counts: dict[str, dict[str, int]]


def load_datasets(
    data: Data, task: AbstractTask, seed: int, tokenizer: PreTrainedTokenizerBase, limit: int
) -> Datasets:
    """Return the sets that a recipe's data section names, tokenised.

    Args:
        task: the recipe's task, which makes texts of rows.
        seed: the run's seed, which with data.per_class decides the rows that are drawn.
        limit: tokens of a sequence at most.

    Raises:
        DataError: a file, a row or a label is not valid.
    """
    from .rows.sets import load_sets, sample_per_class

    train_rows, parts, left_out = load_sets(data, task.fields())
    sets, counts = {}, {}
    for which, rows in {"train": train_rows, **parts}.items():
        is_drawn = which == "train" or (which == "valid" and isinstance(data.valid, Split))
        if data.per_class and is_drawn:
            rows = sample_per_class(rows, data.per_class, task.label, seed, which)
        sets[which], counts[which] = task.encode(rows, tokenizer, limit, data.on_overflow)
    counts["train"] |= left_out
    return Datasets(sets["train"], sets.get("valid"), sets.get("test"), counts)
