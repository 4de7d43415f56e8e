"""The facts of the OPT family: learned positions offset by two, ReLU, biases, norms before or after, projections."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ._rows import attend_at_rows, gather_rows, longest, prepend_tokens, split_heads

__all__ = ["BLOCKS", "HEAD", "context", "embed", "final", "head", "last", "longest"]
BLOCKS, HEAD = "model.decoder.layers", "CausalLM"
UNUSED: tuple[str, ...] = ()  # beginnings of the names of tensors that a checkpoint may hold for nothing


def embed(model: Any, ids: Tensor, places: Tensor, ahead: Tensor | None = None) -> Tensor:
    """What the first block reads: [S, n + T, H]. places [1 or S, n + T]: positions; ahead: [S, n, E] before the embeddings."""
    decoder = model.model.decoder
    h = prepend_tokens(ahead, decoder.embed_tokens(ids))
    if decoder.project_in is not None:
        h = decoder.project_in(h)
    return h + decoder.embed_positions(None, position_ids=places.expand(len(h), -1))


def context(model: Any, h: Tensor, places: Tensor, past: Any = None) -> dict[str, Any]:
    return {"past_key_values": past}


def last(block: Any, h: Tensor, rows: Tensor, attention_mask: Tensor | None, past_key_values: Any, **_: Any) -> Tensor:
    """The block's output at rows [S, R] alone: [S, R, H]."""
    a, before = block.self_attn, block.do_layer_norm_before
    x = block.self_attn_layer_norm(h) if before else h
    k, v = split_heads(a.k_proj(x), a.head_dim), split_heads(a.v_proj(x), a.head_dim)
    q = split_heads(a.q_proj(gather_rows(x, rows)), a.head_dim)
    h = gather_rows(h, rows) + a.out_proj(
        attend_at_rows(q, k, v, rows, a.scaling, attention_mask, past_key_values, a.layer_idx)
    )
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
