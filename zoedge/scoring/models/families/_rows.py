"""The last block needs queries only where the loss reads: keys and values everywhere, the rest at the scored rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def gather_rows(h: Tensor, rows: Tensor) -> Tensor:
    """[S, T, H] at rows [S, R] -> [S, R, H]."""
    return h.gather(1, rows[:, :, None].expand(-1, -1, h.shape[-1]))


def prepend_tokens(ahead: Tensor | None, h: Tensor) -> Tensor:
    """[S, n, E] before [S, T, E]."""
    return h if ahead is None else torch.cat([ahead, h], 1)


def attend_at_rows(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, scale: float, mask: Tensor | None, past: Any, layer: int
) -> Tensor:
    """Attention of the queries at `rows` alone: [S, R, heads D]. q [S, heads, R, D]; k, v [S, groups, T, D].

    mask: as the other blocks take it, [1 or S, 1, T, m + T]; None: causal. past: None, or a models.base.Past of m tokens.
    """
    if past is not None:
        k, v = past.update(k, v, layer)
    if mask is None:
        seen = torch.arange(k.shape[2], device=k.device)[None, None, None] <= rows[:, None, :, None]
    else:
        seen = gather_rows(mask[:, 0].expand(len(rows), -1, -1), rows)[:, None]
    out = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2).flatten(2)


def split_heads(x: Tensor, size: int) -> Tensor:
    """[S, T, heads size] -> [S, heads, T, size]."""
    return x.unflatten(-1, (-1, size)).transpose(1, 2)


def longest(config: Any) -> int:
    """Tokens of a sequence at most. Up to a sliding window's size its attention is the plain causal one; no longer."""
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]  # Mistral's are all alike and unnamed
    window = getattr(config, "sliding_window", None) if "sliding_attention" in kinds else None
    return min(config.max_position_embeddings, window or config.max_position_embeddings)
