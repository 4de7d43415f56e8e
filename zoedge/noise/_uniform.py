"""16 random bits an element, a function of key and place: what `types.dithered` rounds with, and masks are cut from."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..types import Key, Leaf
from ._philox import lookup

RANKS = np.arange(65536).astype("<f4").tobytes()


def uniform(key: Key, leaf: Leaf) -> Any:
    """[n] int32 in 0 .. 65535, torch or numpy as the leaf's value is."""
    found = lookup(key, leaf.offset, leaf.value, 16, RANKS, 1)
    return found.astype("<i4") if isinstance(found, np.ndarray) else found.int()
