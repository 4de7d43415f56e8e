"""Philox4x32-10 gives 128 random bits as a pure function of (seed, seq, query, stream, block).

The source is Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; Triton's `tl.philox` gives the same
words. The counter is (block, stream, query, seq) and the key (low half of the seed, high half), 32 bits each. The same
lines run on numpy's uint64 and on torch's int64, whose right shift keeps the sign: hence the masks.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch

from ...core.types import Key

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
LOW_32_BITS = 0xFFFFFFFF
LOW_WORD_INDEX = 0 if sys.byteorder == "little" else 1  # of an int64's two int32
CHUNK_COUNTERS = 1 << 15  # counters computed at a time: their arrays stay in a core's second-level cache


def _philox_rounds(c0: Any, c1: Any, c2: Any, c3: Any, k0: int, k1: int) -> tuple[Any, Any, Any, Any]:
    """Apply the ten rounds to four 32-bit words, each an int or an array of 64-bit integers.

    Only the low 32 bits of an array in the result count: products wrap to 64 bits, so only factors are masked. A word that
    starts as an int stays one for up to three rounds, which saves work.
    """
    for _ in range(10):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c2 = _mix_words(p1 >> 32, c1, k0), _mix_words(p0 >> 32, c3, k1)
        c1, c3 = p1, p0
        k0, k1 = (k0 + WEYL[0]) & LOW_32_BITS, (k1 + WEYL[1]) & LOW_32_BITS
    return c0, c1, c2, c3


def _mix_words(high: Any, c: Any, k: int) -> Any:
    """Return (high ^ c ^ k) & LOW_32_BITS. An array `high` is overwritten: it is always a fresh one."""
    if isinstance(high, int):
        return (high ^ c ^ k) & LOW_32_BITS
    if isinstance(c, int):
        high ^= (c ^ k) & LOW_32_BITS
    else:
        high ^= c
        high ^= k
    high &= LOW_32_BITS
    return high


def check_counter(key: Key, first: int, count: int) -> None:
    """Raise ValueError unless the key and the blocks first .. first + count fit into their bits."""
    if not 0 <= first <= first + count <= 2**32:
        raise ValueError(f"noise block {first + count} does not fit in 32 bits")
    if not (0 <= key.seed < 2**64 and 0 <= key.seq < 2**32 and 0 <= key.query < 2**32):
        raise ValueError(f"{key} does not fit in Philox's counter")


def philox_torch(key: Key, first: int, count: int, device: torch.device) -> torch.Tensor:
    """Return the words of the blocks first .. first + count - 1 as [count, 4] int32 bit patterns."""
    check_counter(key, first, count)
    words = torch.empty(count, 4, dtype=torch.int32, device=device)
    for start in range(0, count, CHUNK_COUNTERS):
        chunk = words[start : start + CHUNK_COUNTERS]
        c0 = torch.arange(first + start, first + start + len(chunk), dtype=torch.int64, device=device)
        rounds = _philox_rounds(c0, key.stream, key.query, key.seq, key.seed & LOW_32_BITS, key.seed >> 32)
        for i, word in enumerate(rounds):
            chunk[:, i] = word.view(torch.int32)[LOW_WORD_INDEX::2]
    return words


def philox_numpy(key: Key, first: int, count: int) -> np.ndarray:
    """Return the same bits as `philox_torch`, as [count, 4] uint32."""
    check_counter(key, first, count)
    c0 = np.arange(first, first + count, dtype=np.uint64)
    words = _philox_rounds(c0, key.stream, key.query, key.seq, key.seed & LOW_32_BITS, key.seed >> 32)
    return (np.stack(words, axis=1) & np.uint64(LOW_32_BITS)).astype("<u4")
