"""This module puts virtual tokens, as keys and values, before every block's own, and chooses tokens to begin with."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import DataError
from .vocabulary import check_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class PastKeyValues:
    """The keys and values of m virtual tokens, in the place of a cache of transformers.

    held: [copies, blocks, 2, groups of heads, m, D].
    each: the number of sequences in each copy.
    """

    held: Tensor
    each: int

    def update(self, k: Tensor, v: Tensor, layer: int, *_: object) -> tuple[Tensor, Tensor]:
        """Return the keys and values [copies * each, groups, m + T, D] of a block, whose own are k and v [..., T, D].

        A block of transformers calls this as the method of its cache, and may pass more arguments.
        """
        before = self.held[:, layer].repeat_interleave(self.each, 0).unbind(1)
        return torch.cat([before[0], k], 2), torch.cat([before[1], v], 2)


def choose_token_ids(tokenizer: PreTrainedTokenizerBase, vocabulary: int, count: int, text: str, seed: int) -> Tensor:
    """Return `count` token ids, as `Base.choose_token_ids` does. vocabulary: how many tokens the model knows."""
    if not text:
        drawn = (hashlib.sha256(f"{seed} {i}".encode()).digest()[:8] for i in range(count))
        size = min(len(tokenizer), vocabulary)
        return torch.tensor([int.from_bytes(word, "little") % size for word in drawn])
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if not 0 < len(ids) <= count:
        raise DataError(f"space.text: {len(ids)} tokens, where 1 to space.tokens ({count}) are wanted.")
    check_token_ids(ids, tokenizer, vocabulary, "space.text")
    return torch.tensor((ids * count)[:count])
