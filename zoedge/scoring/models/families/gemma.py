"""The first Gemma, which has LLaMA's modules. They scale embeddings by sqrt(hidden) and norms by 1 + weight themselves."""

from __future__ import annotations

from ._rows import longest
from .llama import BLOCKS, HEAD, UNUSED, WRITE, WRITES, context, embed, final, head, head_input, last, read_norm

__all__ = [
    "BLOCKS",
    "HEAD",
    "UNUSED",
    "WRITE",
    "WRITES",
    "context",
    "embed",
    "final",
    "head",
    "head_input",
    "last",
    "longest",
    "read_norm",
]
