"""z ~ N(0, 1) from a shipped table: 16 random bits index 65,536 quantiles of 8 significant bits (no Box-Muller).

It has the same bits on every device. torch.randn has not: on a CPU its stream depends on the instruction set, on CUDA on
the number of multiprocessors. The variance is 1 to within 1e-5, and the largest value is 4.31.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from ...core.types import AbstractNoise, Key, Leaf
from . import _fused
from ._lookup import look_up_noise

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


@lru_cache(maxsize=1)
def quantile_table() -> bytes:
    """Return 65,536 float32 values in rising order, as bytes. The file holds the upper half as bfloat16 patterns."""
    half = np.frombuffer(resources.files(__package__).joinpath("normal.u16").read_bytes(), dtype="<u2")
    upper = (half.astype("<u4") << 16).view("<f4")
    return np.concatenate([-upper[::-1], upper]).astype("<f4").tobytes()


@dataclass(frozen=True)
class Normal(AbstractNoise):
    """The noise whose elements are independent and normal, N(0, 1)."""

    scheme = 3  # frozen: the noise id in a log's header
    dense = True

    def draw(self, key: Key, leaf: Leaf) -> Tensor:
        """Return a quantile for each 16 bits of Philox."""
        return look_up_noise(key, leaf, 16, quantile_table(), 1)

    def kernel(self, like: Tensor) -> Callable[..., Tensor] | None:
        """Return the fused product for 16 bits an element; None: there is none for this device."""
        return _fused.find_kernel(like, 16, quantile_table(), 1)
