"""The first Gemma, which has LLaMA's modules. They scale embeddings by sqrt(hidden) and norms by 1 + weight themselves."""

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
