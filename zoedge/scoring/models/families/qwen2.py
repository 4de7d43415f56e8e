"""The Qwen2 family, which has LLaMA's modules, with biases on q, k and v, and a sliding window where it is switched on."""

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
