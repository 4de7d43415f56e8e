"""This module makes one sequence of all options of an example: the tokens that all begin with, then the rest of each.

The losses are those of one sequence for each option: every token keeps its position, and sees the shared tokens and the
tokens of its own option alone. The shared tokens are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

# The length at which attention costs as much as the rest of a token's forward. It is measured in SmolLM2-135M; wider
# models reach it at longer sequences.
QUADRATIC_LENGTH = 2048


def forward_cost(ids: Tensor) -> float:
    """Return the cost of a forward of sequences [S, T], in token rows; long sequences pay for their attention too."""
    return ids.numel() * (1 + ids.shape[1] / QUADRATIC_LENGTH)


def count_shared_tokens(options: Sequence[list[int]]) -> int:
    """Return how many tokens all options begin with."""
    for place, tokens in enumerate(zip(*options)):
        if len(set(tokens)) > 1:
            return place
    return min(map(len, options))


def count_token_rows(options: Sequence[list[int]]) -> int:
    """Return how many token rows the options take in one sequence, where shared tokens stand once."""
    repeated = (len(options) - 1) * count_shared_tokens(options)
    return sum(map(len, options)) - repeated


@dataclass(eq=False)
class OptionTree:
    """The tokens of a batch of sequences [S, T], rearranged so that each of its G examples is one sequence.

    K is the number of options of an example at most, U the length of the longest new sequence, and R the number of rows
    that the loss reads in a sequence of the batch. New sequences are padded on the right.

    ids: the tokens, [G, U].
    at: where each token stands in the batch's ids, flattened, [G, U].
    places: the position of each token, which is the one that it has in the batch, [G, U].
    owner: the number in 0..S-1 of the batch's sequence that a token belongs to, [G, U]; -1: all of the example's.
    rows: the places in a new sequence that the loss reads, option by option, [G, K R].
    pick: the number of each of the batch's sequences among the G K options, [S].
    """

    ids: Tensor
    at: Tensor
    places: Tensor
    owner: Tensor
    rows: Tensor
    pick: Tensor

    @classmethod
    def of(cls, sequences: list[list[int]], sizes: list[int], ids: Tensor, rows: Tensor) -> OptionTree | None:
        """Return the tree of a batch, or None where one sequence for each option costs no more.

        Args:
            sequences: the S token sequences, the options of one example after another.
            sizes: the number of options of each of the G examples.
            ids: the same sequences padded on the right, [S, T].
            rows: the positions that the loss reads, [S, R].
        """
        length, most_options = ids.shape[1], max(sizes)
        lines: list[Tensor] = []  # of each example: where the tokens of its new sequence stand in the flattened ids
        shared_counts: list[int] = []  # of each example: how many tokens its options share
        moves: list[tuple[int, int]] = []  # of each option: its shared tokens, and how far the tokens after them move
        pick: list[int] = []
        first = 0  # the number of the example's first sequence
        for example, size in enumerate(sizes):
            options = sequences[first : first + size]
            shared = count_shared_tokens(options)
            start = first * length
            line = list(range(start, start + shared))
            for number, option in enumerate(options, first):
                moves.append((shared, len(line) - shared))
                start = number * length
                line += range(start + shared, start + len(option))
            lines.append(torch.tensor(line))
            shared_counts.append(shared)
            pick += range(example * most_options, example * most_options + size)
            first += size
        at = pad_sequence(lines, batch_first=True)
        if forward_cost(at) >= forward_cost(ids):
            return None
        is_shared = torch.arange(at.shape[1]) < torch.tensor(shared_counts)[:, None]
        option_shared, distance = torch.tensor(moves).T[..., None]  # [S, 1] each
        new_rows = torch.zeros(len(sizes) * most_options, rows.shape[1], dtype=torch.long)
        new_rows[pick] = torch.where(rows < option_shared, rows, rows + distance)
        return cls(
            ids=ids.flatten()[at],
            at=at,
            places=at % length,
            owner=torch.where(is_shared, -1, at // length),
            rows=new_rows.view(len(sizes), -1),
            pick=torch.tensor(pick),
        )
