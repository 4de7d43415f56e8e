"""The last block needs queries only where the loss reads: keys and values everywhere, the rest at the scored rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def gather(h: Tensor, rows: Tensor) -> Tensor:
    """[S, T, H] at rows [S, R] -> [S, R, H]."""
    return h.gather(1, rows[:, :, None].expand(-1, -1, h.shape[-1]))


def put(ahead: Tensor | None, h: Tensor) -> Tensor:
    """[S, n, E] before [S, T, E]."""
    return h if ahead is None else torch.cat([ahead, h], 1)


def attend(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, scale: float, past: Any, layer: int) -> Tensor:
    """Causal attention of the queries at `rows` alone: [S, R, heads D]. q [S, heads, R, D]; k, v [S, groups, T, D].

    past: None, or a models.base.Past, all of which every row sees.
    """
    if past is not None:
        (k, v), rows = past.update(k, v, layer), rows + past.length
    seen = torch.arange(k.shape[2], device=k.device)[None, None, None] <= rows[:, None, :, None]
    out = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2).flatten(2)


def split(x: Tensor, size: int) -> Tensor:
    """[S, T, heads size] -> [S, heads, T, size]."""
    return x.unflatten(-1, (-1, size)).transpose(1, 2)
