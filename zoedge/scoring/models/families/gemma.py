"""The first Gemma, which has LLaMA's modules. They scale embeddings by sqrt(hidden) and norms by 1 + weight themselves."""

from __future__ import annotations

from ._rows import longest
from .llama import BLOCKS, HEAD, UNUSED, context, embed, final, head, last

__all__ = ["BLOCKS", "HEAD", "UNUSED", "context", "embed", "final", "head", "last", "longest"]
