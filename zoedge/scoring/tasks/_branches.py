"""One sequence for all options of an example: [what they begin with alike, the rest of option 1, of option 2, ...].

Exact: every token keeps its position, and sees what all options begin with and its own option alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

QUADRATIC_LENGTH = (
    2048  # where looking back costs as much as all else of a token in SmolLM2-135M (it does so later in wider models)
)


def forward_cost(ids: Tensor) -> float:
    """Of a forward of sequences [S, T], in token rows."""
    return ids.numel() * (1 + ids.shape[1] / QUADRATIC_LENGTH)


def count_shared_tokens(options: Sequence[list[int]]) -> int:
    """How many tokens all options begin with."""
    places = enumerate(zip(*options))
    return next((i for i, tokens in places if len(set(tokens)) > 1), min(map(len, options)))


def count_token_rows(options: Sequence[list[int]]) -> int:
    """Token rows of options in one sequence."""
    return sum(map(len, options)) - (len(options) - 1) * count_shared_tokens(options)


@dataclass(eq=False)
class OptionTree:
    """Of a batch's sequences [S, T], G examples with K options at most, in sequences of U tokens padded on the right.

    ids [G, U]. at [G, U]: where a token stands in [S, T], flattened. places [G, U]: its position. owner [G, U]: its
    sequence, -1: all of the example's. rows [G, K R]: where the loss reads, option by option. pick [S]: a sequence's
    number among the G K.
    """

    ids: Tensor
    at: Tensor
    places: Tensor
    owner: Tensor
    rows: Tensor
    pick: Tensor

    @classmethod
    def of(cls, sequences: list[list[int]], sizes: list[int], ids: Tensor, rows: Tensor) -> OptionTree | None:
        """sizes: options of each example. None: a sequence an option costs no more."""
        length, most, first = ids.shape[1], max(sizes), 0
        lines, shared, moved, pick = [], [], [], []
        for g, size in enumerate(sizes):
            options = sequences[first : first + size]
            common = count_shared_tokens(options)
            line = list(range(first * length, first * length + common))
            for s, option in enumerate(options, first):
                moved.append((common, len(line) - common))
                line += range(s * length + common, s * length + len(option))
            lines.append(torch.tensor(line))
            shared.append(common)
            pick += range(g * most, g * most + size)
            first += size
        at = pad_sequence(lines, batch_first=True)
        if forward_cost(at) >= forward_cost(ids):
            return None
        before = torch.arange(at.shape[1]) < torch.tensor(shared)[:, None]
        common, by = torch.tensor(moved).T[..., None]
        where = torch.zeros(len(sizes) * most, rows.shape[1], dtype=torch.long)
        where[pick] = torch.where(rows < common, rows, rows + by)
        return cls(
            ids.flatten()[at],
            at,
            at % length,
            torch.where(before, -1, at // length),
            where.view(len(sizes), -1),
            torch.tensor(pick),
        )
