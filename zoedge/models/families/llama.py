"""The facts of the LLaMA family: rotary positions, grouped heads, RMS norms, no biases, head tied or not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ._rows import attend, gather, put, split

BLOCKS = "model.layers"


def embed(model: Any, ids: Tensor, ahead: Tensor | None = None, first: int = 0) -> Tensor:
    """What the first block reads: [S, n + T, H]. ahead: [S, n, E] before the embeddings; first: the first position."""
    return put(ahead, model.model.embed_tokens(ids))


def context(model: Any, h: Tensor, first: int = 0) -> dict[str, Any]:
    """What every block takes beside the hidden states; h [S, T, H] gives length, device and dtype."""
    positions = torch.arange(first, first + h.shape[1], device=h.device)[None]
    return {"position_ids": positions, "position_embeddings": model.model.rotary_emb(h, position_ids=positions)}


def last(
    block: Any,
    h: Tensor,
    rows: Tensor,
    position_embeddings: tuple[Tensor, Tensor],
    past_key_values: Any = None,
    **_: Any,
) -> Tensor:
    """The block's output at rows [S, R] alone: [S, R, H]."""
    a, x = block.self_attn, block.input_layernorm(h)
    k, v = split(a.k_proj(x), a.head_dim), split(a.v_proj(x), a.head_dim)
    cos, sin = position_embeddings
    k, _ = apply_rotary_pos_emb(k, k, cos, sin)
    at = [w.expand(len(rows), -1, -1).gather(1, rows[:, :, None].expand(-1, -1, w.shape[-1])) for w in (cos, sin)]
    q = split(a.q_proj(gather(x, rows)), a.head_dim)
    q, _ = apply_rotary_pos_emb(q, q, *at)
    h = gather(h, rows) + a.o_proj(attend(q, k, v, rows, a.scaling, past_key_values, a.layer_idx))
    return h + block.mlp(block.post_attention_layernorm(h))


def final(model: Any, h: Tensor) -> Tensor:
    return model.model.norm(h)


def head(model: Any) -> nn.Linear:
    return model.lm_head
