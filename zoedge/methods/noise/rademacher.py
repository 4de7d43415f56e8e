"""z = +1 or -1 with equal chance: one random bit an element, exact on every device (Spall 1992; GA_sign of S2P)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...core.types import AbstractNoise, Key, Leaf
from . import _fused
from ._lookup import look_up_noise

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

# row b holds the signs of byte b's bits, lowest first (1 -> +1), so that one look-up gives 8 elements
BYTE_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
SIGN_TABLE = (BYTE_BITS * 2.0 - 1.0).astype("<f4").tobytes()


@dataclass(frozen=True)
class Rademacher(AbstractNoise):
    """The noise whose elements are independent signs."""

    scheme = 1  # frozen: the noise id in a log's header
    dense = True

    def draw(self, key: Key, leaf: Leaf) -> Tensor:
        """Return a sign for each bit of Philox."""
        return look_up_noise(key, leaf, 8, SIGN_TABLE, 8)

    def kernel(self, like: Tensor) -> Callable[..., Tensor] | None:
        """Return the fused product for one bit an element; None: there is none for this device."""
        return _fused.find_kernel(like, 8, SIGN_TABLE, 8)
