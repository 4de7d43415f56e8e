"""This module puts virtual tokens, as keys and values, before every block's own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
