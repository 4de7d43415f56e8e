"""This module cuts a set of sequences into the blocks in which their lower layers' outputs are computed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

BLOCK_TOKENS = 2048  # padded token rows of a forward that fills the cache


class TrunkBlock(NamedTuple):
    """Sequences of like length that are computed in one forward: their numbers, and the length that they are padded to."""

    numbers: list[int]
    length: int


def partition_sequences(lengths: Sequence[int], planned: Collection[int] | None = None) -> list[TrunkBlock]:
    """Return blocks in which each sequence stands once, the longest first.

    A sequence is padded to the same length whatever is planned, because its bits depend on that (in attention).

    Args:
        lengths: of each sequence, in tokens.
        planned: the numbers of those that will be read. They share no block with others; None: all will be.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    by_length: dict[int, list[int]] = {}  # ascending in each, the longest first
    while order:
        longest = lengths[order[-1]]
        size = min(len(order), max(1, BLOCK_TOKENS // longest))
        by_length[longest] = order[-size:] + by_length.get(longest, [])
        del order[-size:]
    chosen = range(len(lengths)) if planned is None else set(planned)
    blocks = []
    for is_planned in (True, False):
        for length, numbers in by_length.items():
            members = [i for i in numbers if (i in chosen) == is_planned]
            size = max(1, BLOCK_TOKENS // length)
            while members:
                blocks.append(TrunkBlock(members[-size:], length))
                del members[-size:]
    return blocks
