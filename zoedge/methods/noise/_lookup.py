"""This module makes a leaf's elements from Philox's bits: each 8 or 16 bits are the index of a row in a table."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ...core.types import Key, Leaf
from ._philox import check_counter, philox_numpy, philox_torch

WINDOW_COUNTERS = 1 << 14  # counters of a window that is kept: 2 M signs or 131,072 normals, 256 KiB


@lru_cache(maxsize=8)
def _table_tensor(table: bytes, width: int, device: torch.device) -> torch.Tensor:
    """Return a table as [rows, width]; with width 1 as [rows], where a look-up is four times as fast."""
    rows = torch.frombuffer(bytearray(table), dtype=torch.float32).to(device)
    return rows.view(-1, width) if width > 1 else rows


@lru_cache(maxsize=16)  # a step's queries
def _window_words(key: Key, number: int, end: int, device: torch.device) -> torch.Tensor:
    """Return the words [<= WINDOW_COUNTERS, 4] of a window, kept because many matrices are too short for calls of their own."""
    return philox_torch(key, number * WINDOW_COUNTERS, min(WINDOW_COUNTERS, end - number * WINDOW_COUNTERS), device)


def _counter_words(key: Key, first: int, count: int, end: int, device: torch.device) -> torch.Tensor:
    """Return the words [count, 4] of the counters first .. first + count - 1, of a vector with `end` counters (0: unknown)."""
    if end <= count:
        return philox_torch(key, first, count, device)
    check_counter(key, first, count)
    numbers = range(first // WINDOW_COUNTERS, (first + count - 1) // WINDOW_COUNTERS + 1)
    windows = [_window_words(key, i, end, device) for i in numbers]
    start = first - numbers[0] * WINDOW_COUNTERS
    return (windows[0] if len(windows) == 1 else torch.cat(windows))[start : start + count]


def look_up_noise(key: Key, leaf: Leaf, bits: int, table: bytes, width: int) -> Any:
    """Return a leaf's elements of the stream in which each `bits` random bits are the index of a row of `table`.

    Args:
        bits: 8 or 16.
        table: 2**bits rows of `width` float32 values, as bytes.

    Returns:
        [len(leaf.value)] float32, on the device and of the library of `leaf.value`.
    """
    like, block = leaf.value, 128 // bits * width  # elements a counter
    first, start = divmod(leaf.offset, block)
    stop = start + like.shape[0]
    count = -(-stop // block)
    if isinstance(like, np.ndarray):
        index = philox_numpy(key, first, count).reshape(-1).view(f"<u{bits // 8}")
        return np.frombuffer(table, dtype=np.float32).reshape(-1, width)[index].reshape(-1)[start:stop]
    words = _counter_words(key, first, count, -(-leaf.total // block), like.device)
    row = words.reshape(-1).view(torch.uint8 if bits == 8 else torch.int16).to(torch.int32)
    if bits == 16:
        row &= 0xFFFF
    return _table_tensor(table, width, like.device).index_select(0, row).view(-1)[start:stop]
