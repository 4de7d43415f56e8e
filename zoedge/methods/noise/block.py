"""z of query q of record n is noise on block n + q mod `blocks` of everything trained, zero elsewhere.

This is block-wise ZO (ZO-Bench, arXiv 2402.11592), whose code gives blocks of equal shape the same numbers. With one query
the blocks take turns. With as many queries as blocks and the estimator's `combine: sum`, a step estimates every block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_doc import Doc

from ...core.types import AbstractNoise, Key, Leaf, Natural
from .normal import Normal
from .rademacher import Rademacher

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Block(AbstractNoise):
    """The noise on one block of the elements at a time."""

    scheme = 9  # frozen: the noise id in a log's header
    of: Annotated[Literal["rademacher", "normal"], Doc("The noise on a block.")] = "rademacher"
    blocks: Annotated[Natural, Doc("The number of blocks, all of equal length.")] = 4

    def draw(self, key: Key, leaf: Leaf) -> Tensor | None:
        """Return the noise where the leaf lies in the record's block, and zeros elsewhere; None: it lies outside of it."""
        b = (key.seq + key.query) % self.blocks
        first = leaf.total * b // self.blocks - leaf.offset
        last = leaf.total * (b + 1) // self.blocks - leaf.offset
        first, last = max(first, 0), min(last, len(leaf.value))
        if first >= last:
            return None
        inner = Rademacher() if self.of == "rademacher" else Normal()
        z = leaf.zeros()
        z[first:last] = inner.draw(key, Leaf(leaf.name, leaf.offset + first, leaf.value[first:last]))
        return z
