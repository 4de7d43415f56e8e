"""z = sqrt d e_i, i uniform over everything trained: one element a query (DAP's notebook and mesh, arXiv 2510.19975)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...core.types import AbstractNoise, Key, Leaf
from ._philox import philox_numpy

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Coordinate(AbstractNoise):
    """The noise that moves one element of everything trained, which `key` chooses."""

    scheme = 7  # frozen: the noise id in a log's header

    def draw(self, key: Key, leaf: Leaf) -> Tensor | None:
        """Return e_i on the leaf that holds element i; None: it is in another leaf."""
        word = int.from_bytes(philox_numpy(key, 0, 1).tobytes()[:8], "little")
        place = (word * leaf.total >> 64) - leaf.offset  # 64 bits: the bias is below 2**-30 for 2**34 elements
        if not 0 <= place < len(leaf.value):
            return None
        z = leaf.zeros()
        z[place] = 1.0
        return z

    def gain(self, elements: int, square: Callable[[], float]) -> float:
        """Return sqrt d, where d is the number of elements."""
        return math.sqrt(elements)
