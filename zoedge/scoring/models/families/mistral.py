"""The Mistral family, which has LLaMA's modules. The sliding window of its first version limits a sequence's length."""

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
