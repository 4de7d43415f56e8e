"""The facts of the LLaMA family: rotary positions, grouped heads, RMS norms, no biases, head tied or not.

Mistral, Qwen and Gemma have the same modules under the same names, so their files import these functions.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ._rows import attend_at_rows, gather_rows, longest, prepend_tokens, split_heads

__all__ = ["BLOCKS", "HEAD", "context", "embed", "final", "head", "last", "longest"]
BLOCKS, HEAD = "model.layers", "CausalLM"
UNUSED: tuple[str, ...] = ()  # beginnings of the names of tensors that a checkpoint may hold for nothing


def embed(model: Any, ids: Tensor, places: Tensor, ahead: Tensor | None = None) -> Tensor:
    """What the first block reads: [S, n + T, H]. places [1 or S, n + T]: positions; ahead: [S, n, E] before the embeddings."""
    return prepend_tokens(ahead, model.model.embed_tokens(ids))


def context(model: Any, h: Tensor, places: Tensor, past: Any = None) -> dict[str, Any]:
    """What every block takes beside the hidden states [S, T, H]. places: as `embed`'s; past: None, or a models.base.Past."""
    turns = model.model.rotary_emb(h, position_ids=places)
    return {"position_ids": places, "position_embeddings": turns, "past_key_values": past}


def last(
    block: Any,
    h: Tensor,
    rows: Tensor,
    attention_mask: Tensor | None,
    position_embeddings: tuple[Tensor, Tensor],
    past_key_values: Any,
    **_: Any,
) -> Tensor:
    """The block's output at rows [S, R] alone: [S, R, H]."""
    a, x = block.self_attn, block.input_layernorm(h)
    k, v = project_heads(a, "k", x), project_heads(a, "v", x)
    cos, sin = position_embeddings
    k, _ = apply_rotary_pos_emb(k, k, cos, sin)
    at = [gather_rows(w.expand(len(rows), -1, -1), rows) for w in (cos, sin)]
    q = project_heads(a, "q", gather_rows(x, rows))
    q, _ = apply_rotary_pos_emb(q, q, *at)
    h = gather_rows(h, rows) + a.o_proj(
        attend_at_rows(q, k, v, rows, a.scaling, attention_mask, past_key_values, a.layer_idx)
    )
    return h + block.mlp(block.post_attention_layernorm(h))


def project_heads(a: Any, which: str, x: Tensor) -> Tensor:
    """q, k or v [S, heads, T, D] of x [S, T, H]; Qwen3 also norms each head's q and k."""
    heads = split_heads(getattr(a, f"{which}_proj")(x), a.head_dim)
    norm = getattr(a, f"{which}_norm", None)
    return heads if norm is None else norm(heads)


def final(model: Any, h: Tensor) -> Tensor:
    return model.model.norm(h)


def head(model: Any) -> nn.Linear:
    return model.lm_head
