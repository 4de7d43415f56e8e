"""This module loads the rows that a recipe names, and tokenises them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..recipe.sections import Data, Split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..core.types import AbstractTask
    from .rows.row import Row
    from .tasks._examples import Examples


@dataclass
class Datasets:
    """The tokenised sets of a run. counts: by set, how many rows were truncated, dropped, or left out for what reason."""

    train: Examples
    valid: Examples | None
    test: Examples | None
    counts: dict[str, dict[str, int]]


def load_datasets(
    data: Data, task: AbstractTask, seed: int, tokenizer: PreTrainedTokenizerBase, limit: int, vocabulary: int
) -> Datasets:
    """Return the sets that a recipe's data section names, tokenised.

    Args:
        task: the recipe's task, which makes texts of rows.
        seed: the run's seed, which with data.per_class decides the rows that are drawn.
        limit: tokens of a sequence at most.
        vocabulary: how many tokens the model's table has.

    Raises:
        DataError: a file, a row or a label is not valid.
    """
    from .rows.sets import load_sets, sample_per_class

    train_rows, parts, left_out = load_sets(data, task.fields(), task.content, readable_fields(task))
    sets, counts = {}, {}
    for which, rows in {"train": train_rows, **parts}.items():
        is_drawn = which == "train" or (which == "valid" and isinstance(data.valid, Split))
        if data.per_class and is_drawn:
            rows = sample_per_class(rows, data.per_class, task.label, seed, which)
        sets[which], counts[which] = encode_rows(task, rows, tokenizer, limit, data, vocabulary)
    counts["train"] |= left_out
    return Datasets(sets["train"], sets.get("valid"), sets.get("test"), counts)


def readable_fields(task: AbstractTask) -> list[str] | None:
    """Return the fields of a row that a task may read; None: any, because a function of the user's is given the row.

    They are those of the prompt, all formats' fields if the task reads conversations, and those that an option names.
    """
    from .rows.formats import CHAT_FIELDS, CHAT_FORMATS

    if ":" in task.objective:
        return None
    options = [value.partition(".")[0] for value in vars(task).values() if isinstance(value, str)]
    conversations = [*CHAT_FIELDS, "label", "kto_tag"] if set(CHAT_FORMATS) <= set(task.formats) else []
    return [*task.fields(), *conversations, *(name for name in options if name.isidentifier())]


def encode_rows(
    task: AbstractTask,
    rows: list[Row],
    tokenizer: PreTrainedTokenizerBase,
    limit: int,
    data: Data,
    vocabulary: int,
) -> tuple[Examples, dict[str, int]]:
    """Return the tokenised rows, and how many were truncated or dropped, by reason.

    With data.on_untrainable: drop, rows that cannot be trained on are left out and counted, as long as there are others.

    vocabulary: how many tokens the model's table has. DataError: a row cannot be trained on, or a token is not in that table.
    """
    from .models.vocabulary import check_token_ids
    from .rows.row import RowError

    left_out: dict[str, int] = {}
    while True:
        try:
            examples, counts = task.encode(rows, tokenizer, limit, data.on_overflow)
            break
        except RowError as e:
            kept = [row for row in rows if row.where not in e.rows]
            if data.on_untrainable != "drop" or not 0 < len(kept) < len(rows):
                raise
            first = str(e).partition("\n")[0]
            left_out[f"cannot be trained on, dropped ({first})"] = len(rows) - len(kept)
            rows = kept
    for part in (examples, *examples.choices):
        for i, name in enumerate(part.names):
            sequences = range(i * part.sequences_each, (i + 1) * part.sequences_each)
            ids = (token for j in sequences for token in (*part.tokens[j], *part.targets[j]))
            check_token_ids(ids, tokenizer, vocabulary, name)
    return examples, counts | left_out
