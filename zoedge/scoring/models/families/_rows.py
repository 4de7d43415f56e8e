"""What the families' files share, above all for the last block, which computes queries only at the rows that the loss reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from ..past import PastKeyValues


def gather_rows(h: Tensor, rows: Tensor) -> Tensor:
    """Return the rows [S, R] of h [S, T, H], which is [S, R, H]."""
    return h.gather(1, rows[:, :, None].expand(-1, -1, h.shape[-1]))


def prepend_tokens(ahead: Tensor | None, h: Tensor) -> Tensor:
    """Return `ahead` [S, n, E] before h [S, T, E], which is [S, n + T, E]; h itself where `ahead` is None."""
    return h if ahead is None else torch.cat([ahead, h], 1)


def attend_at_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Tensor,
    scale: float,
    mask: Tensor | None,
    past: PastKeyValues | None,
    layer: int,
) -> Tensor:
    """Return the attention's output at the rows [S, R] alone, [S, R, heads D].

    Args:
        q: the queries at these rows, [S, heads, R, D].
        k, v: the keys and values of all tokens, [S, groups, T, D].
        scale: the factor of the products of queries and keys.
        mask: what the other blocks are given, [1 or S, 1, T, m + T]; None: attention is causal.
        past: the keys and values of m virtual tokens; None: there are none.
        layer: the block's number.
    """
    if past is not None:
        k, v = past.update(k, v, layer)
    if mask is None:
        visible = torch.arange(k.shape[2], device=k.device)[None, None, None] <= rows[:, None, :, None]
    else:
        visible = gather_rows(mask[:, 0].expand(len(rows), -1, -1), rows)[:, None]
    out = scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2).flatten(2)


def split_heads(x: Tensor, size: int) -> Tensor:
    """Return x, [S, T, heads size], by heads, [S, heads, T, size]."""
    return x.unflatten(-1, (-1, size)).transpose(1, 2)


def longest(config: PreTrainedConfig) -> int:
    """Return how many tokens a sequence may have: the model's positions, or its sliding window if that is shorter.

    Up to the window's size, attention with a sliding window is plain causal attention, which is all that zoedge computes.
    """
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]  # Mistral does not name its layers' types
    window = getattr(config, "sliding_window", None) if "sliding_attention" in kinds else None
    return min(config.max_position_embeddings, window or config.max_position_embeddings)
