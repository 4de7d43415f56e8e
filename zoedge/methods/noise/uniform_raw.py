"""z uniform on (-1, 1), variance 1/3: for comparison with the S2P paper's "uniform" (Figure 4), not to be preferred."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...core.types import AbstractNoise, Key, Leaf
from ._lookup import look_up_noise

if TYPE_CHECKING:
    from torch import Tensor

LEVEL_TABLE = ((2.0 * np.arange(256) - 255.0) / 256.0).astype("<f4").tobytes()


@dataclass(frozen=True)
class UniformRaw(AbstractNoise):
    """The noise whose elements are independent and uniform on (-1, 1)."""

    scheme = 6  # frozen: the noise id in a log's header

    def draw(self, key: Key, leaf: Leaf) -> Tensor:
        """Return one of 256 levels in (-1, 1) for each 8 bits of Philox."""
        return look_up_noise(key, leaf, 8, LEVEL_TABLE, 1)
