"""Philox4x32-10: 128 random bits as a pure function of (seed, seq, query, stream, block).

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; the same words as Triton's `tl.philox`.
counter = (block, stream, query, seq), key = (seed low, seed high), all 32 bits. Two implementations: torch int64
(products wrap, so the high half is masked after the shift) and numpy uint64.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ..types import Key

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
LOW = 0xFFFFFFFF


def _rounds(c0: Any, c1: Any, c2: Any, c3: Any, k0: int, k1: int, number: Any) -> tuple[Any, Any, Any, Any]:
    """Ten rounds on arrays of 32-bit words held in 64 bits; `number` makes a scalar of the array's own type."""
    m0, m1, low, half = map(number, (*MULTIPLIERS, LOW, 32))
    for _ in range(10):
        p0, p1 = c0 * m0, c2 * m1
        c0, c2 = (p1 >> half) & low ^ c1 ^ number(k0), (p0 >> half) & low ^ c3 ^ number(k1)
        c1, c3 = p1 & low, p0 & low
        k0, k1 = (k0 + WEYL[0]) & LOW, (k1 + WEYL[1]) & LOW
    return c0, c1, c2, c3


def _check(key: Key, first: int, count: int) -> None:
    if not 0 <= first <= first + count <= 2**32:
        raise ValueError(f"noise block {first + count} does not fit in 32 bits")
    if not (0 <= key.seed < 2**64 and 0 <= key.seq < 2**32 and 0 <= key.query < 2**32):
        raise ValueError(f"{key} does not fit in Philox's counter")


def words_torch(key: Key, first: int, count: int, device: torch.device) -> torch.Tensor:
    """[count, 4] int32 bit patterns of blocks first .. first + count."""
    _check(key, first, count)
    c0 = torch.arange(first, first + count, dtype=torch.int64, device=device)
    c1, c2, c3 = (torch.full_like(c0, w) for w in (key.stream, key.query, key.seq))
    words = _rounds(c0, c1, c2, c3, key.seed & LOW, key.seed >> 32, int)
    # 2**31 .. 2**32 - 1 as negative numbers by hand: the conversion of out-of-range integers is left to the device
    return torch.stack([w - ((w >> 31) << 32) for w in words], dim=1).to(torch.int32)


def words_numpy(key: Key, first: int, count: int) -> np.ndarray:
    """[count, 4] uint32, the same bits."""
    _check(key, first, count)
    c0 = np.arange(first, first + count, dtype=np.uint64)
    c1, c2, c3 = (np.full_like(c0, w) for w in (key.stream, key.query, key.seq))
    return np.stack(_rounds(c0, c1, c2, c3, key.seed & LOW, key.seed >> 32, np.uint64), axis=1).astype("<u4")


@lru_cache(maxsize=8)
def _table_torch(table: bytes, width: int, device: torch.device) -> torch.Tensor:
    return torch.frombuffer(bytearray(table), dtype=torch.float32).view(-1, width).to(device)


def lookup(key: Key, offset: int, like: Any, bits: int, table: bytes, width: int) -> Any:
    """Elements offset .. offset + len(like) of a stream in which each `bits` random bits index a row of `table`.

    bits: 8 or 16. table: float32 bytes of 2**bits rows of `width` values. like: the tensor or array that decides
    length, device and library. Returns [len(like)] float32.
    """
    block = 128 // bits * width  # elements a counter
    first, start = divmod(offset, block)
    stop = start + like.shape[0]
    count = -(-stop // block)
    if isinstance(like, np.ndarray):
        index = words_numpy(key, first, count).reshape(-1).view(f"<u{bits // 8}")
        return np.frombuffer(table, dtype=np.float32).reshape(-1, width)[index].reshape(-1)[start:stop]
    packed = words_torch(key, first, count, like.device).view(-1).view(torch.uint8 if bits == 8 else torch.int16)
    row = packed.to(torch.int32) & (2**bits - 1)
    return _table_torch(table, width, like.device).index_select(0, row).view(-1)[start:stop]
