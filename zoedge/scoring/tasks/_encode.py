"""This module turns texts into token sequences, and says what happens to a sequence that is too long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import DataError, make_printable
from ..rows.row import Row, RowError, natural_sort_key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenise_texts(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> tuple[list[list[int]], list[int]]:
    """Return the token ids of each text, and how many special tokens the tokenizer put first in each.

    Special tokens that some tokenizers append at the end are taken off: they are part of no option.
    """
    encoded = tokenizer(texts, return_special_tokens_mask=True)
    sequences, starts = [], []
    for ids, special in zip(encoded.input_ids, encoded.special_tokens_mask):
        end = len(ids)
        while end and special[end - 1]:
            end -= 1
        sequences.append(ids[:end])
        first_of_text = next((i for i, is_special in enumerate(special) if not is_special), end)
        starts.append(first_of_text)
    return sequences, starts


def leading_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the special tokens that the tokenizer puts before a text."""
    (ids,), (start,) = tokenise_texts(tokenizer, ["a"])
    return ids[:start]


def truncate_tokens(ids: list[int], scored: list[int], start: int, cut: int) -> tuple[list[int], list[int]]:
    """Return the ids and the scored positions without the `cut` tokens that follow the first `start`.

    Position 0 is never among the scored positions of the result, as no token before it predicts it.
    """
    end = start + cut
    before = [i for i in scored if 0 < i < start]
    after = [i - cut for i in scored if i >= end and i > cut]
    return ids[:start] + ids[end:], before + after


def check_overflow(
    rows: list[Row], lengths: list[int], limit: int, overflow: str, lost: str = "the prompt, from the left"
) -> dict[str, int]:
    """Return how many rows were truncated and how many were dropped, because they are longer than `limit` tokens.

    Args:
        lengths: the tokens of each row in a forward.
        overflow: data.on_overflow, which is error, truncate or drop.
        lost: what truncating takes away, for the message.

    Raises:
        DataError: a row is too long and overflow is `error`, or all rows are too long and overflow is `drop`.
    """
    long = [row.where for row, length in zip(rows, lengths) if length > limit]
    if long and overflow == "error":
        raise RowError(
            long,
            f"{len(long):,} of {len(rows):,} samples ({100 * len(long) / len(rows):.1f} %) are longer than "
            f"{limit:,} tokens (p99 = {sorted(lengths)[int(0.99 * (len(rows) - 1))]:,}, longest {max(lengths):,}, "
            f"first {min(long, key=natural_sort_key)}). Raise data.max_length, as far as the model's context goes, or set "
            f"data.on_overflow: truncate ({lost}) | drop.",
        )
    if overflow == "drop" and len(long) == len(rows):
        raise DataError(f"No sample is left: all {len(rows):,} are longer than {limit:,} tokens.")
    cut = overflow == "truncate"
    return {"truncated": len(long) if cut else 0, "dropped": 0 if cut else len(long)}


def find_equal_options(tokenizer: PreTrainedTokenizerBase, words: list[str], sequences: list[list[int]]) -> str:
    """Return what is wrong with options of which two are the same tokens, between which no model can choose; "": nothing.

    Args:
        words: the options.
        sequences: the tokens of the prompt with each option.
    """
    seen: dict[tuple[int, ...], str] = {}
    for word, ids in zip(words, sequences):
        if (other := seen.setdefault(tuple(ids), word)) != word:
            last = make_printable(str(tokenizer.convert_ids_to_tokens(ids[-1])))
            pair = f"'{make_printable(other)}' and '{make_printable(word)}'"
            return f"{pair} are the same tokens to this tokenizer (... {last})"
    return ""
