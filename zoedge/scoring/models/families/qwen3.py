"""The Qwen3 family, which has LLaMA's modules, with RMS norms on each head's q and k, and heads of any size."""

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
