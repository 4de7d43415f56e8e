"""A recipe's rows, tokenised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..recipe.sections import Data, Split

# -- parts


@dataclass
class Datasets:
    """The tokenised rows of a run; dropped and truncated counts by set."""

    train: Any
    valid: Any
    test: Any
    counts: dict[str, dict[str, int]]


def load_datasets(data: Data, task: Any, seed: int, tokenizer: Any, limit: int) -> Datasets:
    """The recipe's rows, tokenised. DataError: whatever is wrong with a file, a row or a label."""
    from .rows.sets import load_sets, sample_per_class

    rows, parts, more = load_sets(data, task.fields())
    found, counts = {}, {}
    for which, some in {"train": rows, **parts}.items():
        if data.per_class and (which == "train" or (which == "valid" and isinstance(data.valid, Split))):
            some = sample_per_class(some, data.per_class, task.label, seed, which)
        found[which], counts[which] = task.encode(some, tokenizer, limit, data.on_overflow)
    counts["train"] |= more
    return Datasets(found["train"], found.get("valid"), found.get("test"), counts)
