"""The Qwen2 family, which has LLaMA's modules, with biases on q, k and v, and a sliding window where it is switched on."""

from __future__ import annotations

from ._rows import longest
from .llama import (
    BLOCKS,
    HEAD,
    SHARED,
    UNUSED,
    WRITE,
    WRITES,
    context,
    embed,
    final,
    head,
    head_input,
    last,
    last_of_points,
    read_norm,
)

__all__ = [
    "BLOCKS",
    "HEAD",
    "SHARED",
    "UNUSED",
    "WRITE",
    "WRITES",
    "context",
    "embed",
    "final",
    "head",
    "head_input",
    "last",
    "last_of_points",
    "longest",
    "read_norm",
]
