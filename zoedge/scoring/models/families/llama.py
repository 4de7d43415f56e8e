"""The LLaMA family: rotary positions, grouped heads, RMS norms, no biases, and a head that may be tied to the embeddings.

Mistral, Qwen and Gemma have the same modules under the same names, so that their files import these functions.
`FamilyFacts` in this folder's __init__.py says what each function of a family's file does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ._rows import attend_at_rows, gather_rows, longest, prepend_tokens, split_heads

if TYPE_CHECKING:
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM

    from ..past import PastKeyValues
    from ..points import PointProducts

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
    "last_of_points",
    "longest",
    "read_norm",
]
BLOCKS, HEAD = "model.layers", "CausalLM"
UNUSED: tuple[str, ...] = ()
WRITE = "mlp.down_proj"
WRITES = ("self_attn.o_proj", WRITE)
SHARED = ("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def embed(model: LlamaForCausalLM, ids: Tensor, places: Tensor, ahead: Tensor | None = None) -> Tensor:
    """Return what the first block reads, [S, n + T, H], of token ids [S, T] and virtual tokens `ahead` [S, n, E]."""
    return prepend_tokens(ahead, model.model.embed_tokens(ids))


def context(model: LlamaForCausalLM, h: Tensor, places: Tensor, past: PastKeyValues | None = None) -> dict[str, Any]:
    """Return the arguments of every block besides the hidden states h, [S, n + T, H], and the mask."""
    turns = model.model.rotary_emb(h, position_ids=places)
    return {"position_ids": places, "position_embeddings": turns, "past_key_values": past}


def last(
    block: LlamaDecoderLayer,
    h: Tensor,
    rows: Tensor,
    attention_mask: Tensor | None,
    position_embeddings: tuple[Tensor, Tensor],
    past_key_values: PastKeyValues | None,
    **_: object,
) -> Tensor:
    """Return the last block's output at the rows [S, R] alone, [S, R, H]."""
    attention, x = block.self_attn, block.input_layernorm(h)
    k, v = project_heads(attention, "k", x), project_heads(attention, "v", x)
    cos, sin = position_embeddings
    k, _ = apply_rotary_pos_emb(k, k, cos, sin)
    cos_at_rows, sin_at_rows = (gather_rows(w.expand(len(rows), -1, -1), rows) for w in (cos, sin))
    q = project_heads(attention, "q", gather_rows(x, rows))
    q, _ = apply_rotary_pos_emb(q, q, cos_at_rows, sin_at_rows)
    heads = attend_at_rows(q, k, v, rows, attention.scaling, attention_mask, past_key_values, attention.layer_idx)
    h = gather_rows(h, rows) + attention.o_proj(heads)
    return h + block.mlp(block.post_attention_layernorm(h))


def last_of_points(
    block: LlamaDecoderLayer,
    h: Tensor,
    rows: Tensor,
    products: PointProducts,
    position_embeddings: tuple[Tensor, Tensor],
    **_: object,
) -> Tensor:
    """Return the last block's output at the rows [S, R] of C points that share its input h [S, T, H], [C * S, R, H]."""
    attention, x = block.self_attn, block.input_layernorm(h)
    cos, sin = position_embeddings
    k = norm_heads(attention, "k", products.project(attention.k_proj, x))
    k, _ = apply_rotary_pos_emb(k, k, cos, sin)
    q = norm_heads(attention, "q", products.project(attention.q_proj, gather_rows(x, rows)))
    q, _ = apply_rotary_pos_emb(q, q, *(products.gather(w.expand(len(rows), -1, -1), rows) for w in (cos, sin)))
    heads = products.attend(q, k, x, rows, attention.scaling, attention.v_proj)
    h = products.gather(h, rows) + attention.o_proj(heads)
    return h + block.mlp(block.post_attention_layernorm(h))


def project_heads(attention: LlamaAttention, which: str, x: Tensor) -> Tensor:
    """Return the heads of a projection of x [S, T, H], [S, heads, T, D].

    which: the projection's name, q, k or v.
    """
    return norm_heads(attention, which, getattr(attention, f"{which}_proj")(x))


def norm_heads(attention: LlamaAttention, which: str, y: Tensor) -> Tensor:
    """Return a projection [S, T, heads D] by heads, [S, heads, T, D]. Qwen3 also norms each head's q and k."""
    heads = split_heads(y, attention.head_dim)
    norm = getattr(attention, f"{which}_norm", None)
    return heads if norm is None else norm(heads)


def final(model: LlamaForCausalLM, h: Tensor) -> Tensor:
    """Return what the head reads, [..., H], of the last block's output."""
    return model.model.norm(h)


def read_norm(model: LlamaForCausalLM) -> nn.Module:
    """Return the norm that reads the last block's output."""
    norm: nn.Module = model.model.norm
    return norm


def head_input(model: LlamaForCausalLM, h: Tensor) -> Tensor:
    """Return what the head reads, [..., H], of the input of `read_norm`."""
    return final(model, h)


def head(model: LlamaForCausalLM) -> nn.Linear:
    """Return the matrix that makes logits over the vocabulary."""
    return model.lm_head
