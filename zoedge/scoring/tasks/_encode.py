"""From texts to token sequences: what is scored, and what becomes of a sequence that is too long."""

from __future__ import annotations

from typing import Any

from ...errors import DataError
from ..rows.row import Row, natural_sort_key


def tokenise_texts(tokenizer: Any, texts: list[str]) -> tuple[list[list[int]], list[int]]:
    """(ids, how many the tokenizer puts first) of each text, without what some tokenizers append: that is no option."""
    found = tokenizer(texts, return_special_tokens_mask=True)
    sequences, starts = [], []
    for ids, special in zip(found.input_ids, found.special_tokens_mask):
        end = len(ids)
        while end and special[end - 1]:
            end -= 1
        sequences.append(ids[:end])
        starts.append(next((i for i, mark in enumerate(special) if not mark), end))
    return sequences, starts


def truncate_tokens(ids: list[int], scored: list[int], start: int, cut: int) -> tuple[list[int], list[int]]:
    """(ids, scored positions) without the `cut` tokens after the first `start`. A first token has nothing to score it."""
    kept = [i - cut if i >= start + cut else i for i in scored if not start <= i < start + cut]
    return ids[:start] + ids[start + cut :], [i for i in kept if i]


def check_overflow(
    rows: list[Row], lengths: list[int], limit: int, overflow: str, lost: str = "the prompt, from the left"
) -> dict[str, int]:
    """Counts of rows longer than `limit` tokens, truncated or dropped. DataError: there are some (error), or only such.

    lost: what truncating takes away.
    """
    long = [row.where for row, length in zip(rows, lengths) if length > limit]
    if long and overflow == "error":
        raise DataError(
            f"{len(long):,} of {len(rows):,} samples ({100 * len(long) / len(rows):.1f} %) are longer than "
            f"{limit:,} tokens (p99 = {sorted(lengths)[int(0.99 * (len(rows) - 1))]:,}, longest {max(lengths):,}, "
            f"first {min(long, key=natural_sort_key)}). Raise data.max_length, as far as the model's context goes, or set "
            f"data.on_overflow: truncate ({lost}) | drop."
        )
    if overflow == "drop" and len(long) == len(rows):
        raise DataError(f"No sample is left: all {len(rows):,} are longer than {limit:,} tokens.")
    cut = overflow == "truncate"
    return {"truncated": len(long) if cut else 0, "dropped": 0 if cut else len(long)}
