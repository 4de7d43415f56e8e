"""z uniform on the sphere of radius sqrt d over everything trained: normal, divided by its length (MeZO's theory, DAP)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...core.types import AbstractNoise, Key, Leaf
from ._lookup import look_up_noise
from .normal import quantile_table

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sphere(AbstractNoise):
    """The noise that is uniform on a sphere."""

    scheme = 4  # frozen: the noise id in a log's header

    def draw(self, key: Key, leaf: Leaf) -> Tensor:
        """Return a normal direction, whose length `gain` corrects."""
        return look_up_noise(key, leaf, 16, quantile_table(), 1)

    def gain(self, elements: int, square: Callable[[], float]) -> float:
        """Return sqrt d / |z|, where d is the number of elements."""
        return math.sqrt(elements / square())
