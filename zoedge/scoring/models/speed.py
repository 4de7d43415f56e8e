"""This module compares how fast this machine's CPU computes products of two types."""

from __future__ import annotations

import statistics
import time

import torch
from torch.nn.functional import linear

ROWS = 512
BUDGET = 0.02  # seconds of each type
REPEATS = 5


def compare_types(width: int) -> float:
    """Return how many times as fast as in fp32 a product in bf16 is, as many threads as torch has computing it.

    width: of the rows and of the square matrix. The two types take turns, because other programs may slow some of them.
    """
    x, w = torch.ones(ROWS, width), torch.ones(width, width)
    pairs = {torch.float32: (x, w), torch.bfloat16: (x.bfloat16(), w.bfloat16())}
    seconds: dict[torch.dtype, list[float]] = {dtype: [] for dtype in pairs}
    for turn in range(REPEATS + 1):
        for dtype, (rows, matrix) in pairs.items():
            count, began = 0, time.perf_counter()
            while time.perf_counter() - began < BUDGET / REPEATS:
                linear(rows, matrix)
                count += 1
            if turn:  # the first turn also loads kernels
                seconds[dtype].append((time.perf_counter() - began) / count)
    return statistics.median(seconds[torch.float32]) / statistics.median(seconds[torch.bfloat16])
