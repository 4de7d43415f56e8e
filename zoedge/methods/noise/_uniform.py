"""This module draws 16 random bits for each element: masks are cut from them, and weights are rounded by them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ...core.types import Key, Leaf
from ._lookup import look_up_noise
from ._philox import philox_numpy

RANK_TABLE = np.arange(65536).astype("<f4").tobytes()
TABLE_PERIOD = 1 << 18  # elements of the table that rounding repeats: 1 MiB


def draw_uniform_bits(key: Key, leaf: Leaf) -> Any:
    """Return [n] int32 in 0 .. 65535, torch or numpy as the leaf's value is; all their bits are bits of Philox."""
    ranks = look_up_noise(key, leaf, 16, RANK_TABLE, 1)
    return ranks.astype("<i4") if isinstance(ranks, np.ndarray) else ranks.int()


def draw_rounding_bits(key: Key, leaf: Leaf) -> Any:
    """Return the same kind of bits as `draw_uniform_bits`, at a tenth of the cost where there are many elements.

    One table of TABLE_PERIOD elements is repeated, each time xor another random word. The bits of any two elements are
    independent; those of four need not be.
    """
    numpy, stop = isinstance(leaf.value, np.ndarray), leaf.offset + len(leaf.value)
    table, pieces = _rounding_table(key, "numpy" if numpy else leaf.value.device), []
    for period in range(leaf.offset // TABLE_PERIOD, -(-stop // TABLE_PERIOD)):
        first = period * TABLE_PERIOD
        word = int(philox_numpy(key._replace(query=1), period, 1)[0, 0]) & 0xFFFF
        pieces.append(table[max(0, leaf.offset - first) : stop - first] ^ word)
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces) if numpy else torch.cat(pieces)


@lru_cache(maxsize=2)
def _rounding_table(key: Key, where: Any) -> Any:
    """Return [TABLE_PERIOD] int32 in 0 .. 65535. where: a torch device, or "numpy"."""
    blank: Any = np.empty(TABLE_PERIOD, "<f4") if where == "numpy" else torch.empty(TABLE_PERIOD, device=where)
    return draw_uniform_bits(key, Leaf("", 0, blank))
