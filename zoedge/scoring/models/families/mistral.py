"""The facts of the Mistral family: LLaMA's, and a sliding window in the first version, which limits a sequence."""

from __future__ import annotations

from ._rows import longest
from .llama import BLOCKS, HEAD, UNUSED, context, embed, final, head, last

__all__ = ["BLOCKS", "HEAD", "UNUSED", "context", "embed", "final", "head", "last", "longest"]
