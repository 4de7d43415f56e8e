"""z uniform on (-sqrt 3, sqrt 3), 256 levels: unit variance. What the S2P paper's Figure 4 calls uniform is `uniform_raw`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...core.types import AbstractNoise, Key, Leaf
from ._lookup import look_up_noise

if TYPE_CHECKING:
    from torch import Tensor

LEVEL_TABLE = ((2.0 * np.arange(256) - 255.0) / 256.0).astype("<f4").tobytes()  # -255/256 .. 255/256: 8 bits each


@dataclass(frozen=True)
class Uniform(AbstractNoise):
    """The noise whose elements are independent and uniform, with unit variance."""

    scheme = 5  # frozen: the noise id in a log's header

    def draw(self, key: Key, leaf: Leaf) -> Tensor:
        """Return one of 256 levels in (-1, 1) for each 8 bits of Philox."""
        return look_up_noise(key, leaf, 8, LEVEL_TABLE, 1)

    def gain(self, elements: int, square: Callable[[], float]) -> float:
        """Return the factor that brings the variance of the levels to 1."""
        return math.sqrt(3.0 * 65536.0 / 65535.0)  # the levels' variance is (1 - 2**-16) / 3
