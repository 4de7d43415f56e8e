"""The facts of the GPT-NeoX family (Pythia): q, k and v in one matrix, partial rotary positions, parallel residual."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb

from ._rows import attend_at_rows, gather_rows, longest, prepend_tokens, split_heads

__all__ = ["BLOCKS", "HEAD", "context", "embed", "final", "head", "last", "longest"]
BLOCKS, HEAD = "gpt_neox.layers", "CausalLM"
UNUSED: tuple[str, ...] = ()  # beginnings of the names of tensors that a checkpoint may hold for nothing


def embed(model: Any, ids: Tensor, places: Tensor, ahead: Tensor | None = None) -> Tensor:
    return prepend_tokens(ahead, model.gpt_neox.embed_in(ids))


def context(model: Any, h: Tensor, places: Tensor, past: Any = None) -> dict[str, Any]:
    turns = model.gpt_neox.rotary_emb(h, position_ids=places)
    return {"position_embeddings": turns, "layer_past": past}


def last(
    block: Any,
    h: Tensor,
    rows: Tensor,
    attention_mask: Tensor | None,
    position_embeddings: tuple[Tensor, Tensor],
    layer_past: Any,
    **_: Any,
) -> Tensor:
    """The block's output at rows [S, R] alone: [S, R, H]."""
    a = block.attention
    # each head's q, k and v stand side by side: the product is one, and rows are taken of q after it
    q, k, v = split_heads(a.query_key_value(block.input_layernorm(h)), 3 * a.head_size).chunk(3, dim=-1)
    q, k = apply_rotary_pos_emb(q, k, *position_embeddings)  # type: ignore[no-untyped-call]
    q = q.gather(2, rows[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3]))
    h, attention = (
        gather_rows(h, rows),
        a.dense(attend_at_rows(q, k, v, rows, a.scaling, attention_mask, layer_past, a.layer_idx)),
    )
    if block.use_parallel_residual:
        return h + attention + block.mlp(block.post_attention_layernorm(h))
    h = h + attention
    return h + block.mlp(block.post_attention_layernorm(h))


def final(model: Any, h: Tensor) -> Tensor:
    return model.gpt_neox.final_layer_norm(h)


def head(model: Any) -> nn.Linear:
    return model.lm_head
