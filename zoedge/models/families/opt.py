"""The facts of the OPT family: learned positions offset by two, ReLU, biases, norms before or after, projections."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ._rows import attend, gather, longest, put, split

__all__ = ["BLOCKS", "HEAD", "context", "embed", "final", "head", "last", "longest"]
BLOCKS, HEAD = "model.decoder.layers", "CausalLM"


def embed(model: Any, ids: Tensor, ahead: Tensor | None = None, first: int = 0) -> Tensor:
    """What the first block reads: [S, n + T, H]. ahead: [S, n, E] before the embeddings; first: the first position."""
    decoder = model.model.decoder
    h = put(ahead, decoder.embed_tokens(ids))
    if decoder.project_in is not None:
        h = decoder.project_in(h)
    positions = torch.arange(first, first + h.shape[1], device=ids.device)[None]
    # no mask: sequences are padded on the right, so a real token's position is its index
    return h + decoder.embed_positions(None, position_ids=positions)


def context(model: Any, h: Tensor, past: Any = None) -> dict[str, Any]:
    return {"past_key_values": past}


def last(block: Any, h: Tensor, rows: Tensor, past_key_values: Any, **_: Any) -> Tensor:
    """The block's output at rows [S, R] alone: [S, R, H]."""
    a, before = block.self_attn, block.do_layer_norm_before
    x = block.self_attn_layer_norm(h) if before else h
    k, v = split(a.k_proj(x), a.head_dim), split(a.v_proj(x), a.head_dim)
    q = split(a.q_proj(gather(x, rows)), a.head_dim)
    h = gather(h, rows) + a.out_proj(attend(q, k, v, rows, a.scaling, past_key_values, a.layer_idx))
    h = h if before else block.self_attn_layer_norm(h)
    x = block.final_layer_norm(h) if before else h
    h = h + block.fc2(block.activation_fn(block.fc1(x)))
    return h if before else block.final_layer_norm(h)


def final(model: Any, h: Tensor) -> Tensor:
    decoder = model.model.decoder
    if decoder.final_layer_norm is not None:
        h = decoder.final_layer_norm(h)
    return h if decoder.project_out is None else decoder.project_out(h)


def head(model: Any) -> nn.Linear:
    return model.lm_head
