"""The GPT-NeoX family (Pythia): q, k and v in one matrix, rotary positions on a part of each head, parallel residuals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb

from ._rows import attend_at_rows, gather_rows, longest, prepend_tokens, split_heads

if TYPE_CHECKING:
    from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXForCausalLM, GPTNeoXLayer

    from ..past import PastKeyValues

__all__ = [
    "BLOCKS",
    "HEAD",
    "SHARED",
    "WRITE",
    "WRITES",
    "context",
    "embed",
    "final",
    "head",
    "head_input",
    "last",
    "longest",
    "read_norm",
]
BLOCKS, HEAD = "gpt_neox.layers", "CausalLM"
UNUSED: tuple[str, ...] = ()
WRITE = "mlp.dense_4h_to_h"
WRITES = ("attention.dense", WRITE)
SHARED: tuple[str, ...] = ()


def embed(model: GPTNeoXForCausalLM, ids: Tensor, places: Tensor, ahead: Tensor | None = None) -> Tensor:
    """Return what the first block reads, [S, n + T, H], of token ids [S, T] and virtual tokens `ahead` [S, n, E]."""
    return prepend_tokens(ahead, model.gpt_neox.embed_in(ids))


def context(model: GPTNeoXForCausalLM, h: Tensor, places: Tensor, past: PastKeyValues | None = None) -> dict[str, Any]:
    """Return the arguments of every block besides the hidden states h, [S, n + T, H], and the mask."""
    turns = model.gpt_neox.rotary_emb(h, position_ids=places)
    return {"position_embeddings": turns, "layer_past": past}


def last(
    block: GPTNeoXLayer,
    h: Tensor,
    rows: Tensor,
    attention_mask: Tensor | None,
    position_embeddings: tuple[Tensor, Tensor],
    layer_past: PastKeyValues | None,
    **_: object,
) -> Tensor:
    """Return the last block's output at the rows [S, R] alone, [S, R, H]."""
    attention = block.attention
    # each head's q, k and v stand side by side in one matrix, so that q is computed everywhere and its rows taken after
    qkv = split_heads(attention.query_key_value(block.input_layernorm(h)), 3 * attention.head_size)
    q, k, v = qkv.chunk(3, dim=-1)
    q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
    q = q.gather(2, rows[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3]))
    heads = attend_at_rows(q, k, v, rows, attention.scaling, attention_mask, layer_past, attention.layer_idx)
    h, attended = gather_rows(h, rows), attention.dense(heads)
    if block.use_parallel_residual:
        return h + attended + block.mlp(block.post_attention_layernorm(h))
    h = h + attended
    return h + block.mlp(block.post_attention_layernorm(h))


def final(model: GPTNeoXForCausalLM, h: Tensor) -> Tensor:
    """Return what the head reads, [..., H], of the last block's output."""
    return model.gpt_neox.final_layer_norm(h)


def read_norm(model: GPTNeoXForCausalLM) -> nn.Module:
    """Return the norm that reads the last block's output."""
    return model.gpt_neox.final_layer_norm


def head_input(model: GPTNeoXForCausalLM, h: Tensor) -> Tensor:
    """Return what the head reads, [..., H], of the input of `read_norm`."""
    return final(model, h)


def head(model: GPTNeoXForCausalLM) -> nn.Linear:
    """Return the matrix that makes logits over the vocabulary."""
    return model.lm_head
