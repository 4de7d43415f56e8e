"""The OPT family: learned positions with an offset of two, ReLU, and biases.

Depending on the size, norms stand before or after the layers, and embeddings are projected to the width of the blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ._rows import attend_at_rows, gather_rows, longest, prepend_tokens, split_heads

if TYPE_CHECKING:
    from transformers.models.opt.modeling_opt import OPTDecoderLayer, OPTForCausalLM

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
BLOCKS, HEAD = "model.decoder.layers", "CausalLM"
UNUSED: tuple[str, ...] = ()
WRITE = "fc2"
WRITES = ("self_attn.out_proj", WRITE)
SHARED = ("self_attn_layer_norm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def embed(model: OPTForCausalLM, ids: Tensor, places: Tensor, ahead: Tensor | None = None) -> Tensor:
    """Return what the first block reads, [S, n + T, H], of token ids [S, T] and virtual tokens `ahead` [S, n, E]."""
    decoder = model.model.decoder
    h = prepend_tokens(ahead, decoder.embed_tokens(ids))
    if decoder.project_in is not None:
        h = decoder.project_in(h)
    return h + decoder.embed_positions(None, position_ids=places.expand(len(h), -1))


def context(model: OPTForCausalLM, h: Tensor, places: Tensor, past: PastKeyValues | None = None) -> dict[str, Any]:
    """Return the arguments of every block besides the hidden states h, [S, n + T, H], and the mask."""
    return {"past_key_values": past}


def last(
    block: OPTDecoderLayer,
    h: Tensor,
    rows: Tensor,
    attention_mask: Tensor | None,
    past_key_values: PastKeyValues | None,
    **_: object,
) -> Tensor:
    """Return the last block's output at the rows [S, R] alone, [S, R, H]."""
    attention, before = block.self_attn, block.do_layer_norm_before
    assert attention.layer_idx is not None
    x = block.self_attn_layer_norm(h) if before else h
    k, v = (split_heads(project(x), attention.head_dim) for project in (attention.k_proj, attention.v_proj))
    q = split_heads(attention.q_proj(gather_rows(x, rows)), attention.head_dim)
    heads = attend_at_rows(q, k, v, rows, attention.scaling, attention_mask, past_key_values, attention.layer_idx)
    return finish(block, gather_rows(h, rows) + attention.out_proj(heads))


def last_of_points(block: OPTDecoderLayer, h: Tensor, rows: Tensor, products: PointProducts, **_: object) -> Tensor:
    """Return the last block's output at the rows [S, R] of C points that share its input h [S, T, H], [C * S, R, H]."""
    attention = block.self_attn
    x = block.self_attn_layer_norm(h) if block.do_layer_norm_before else h
    k = split_heads(products.project(attention.k_proj, x), attention.head_dim)
    q = split_heads(products.project(attention.q_proj, gather_rows(x, rows)), attention.head_dim)
    heads = products.attend(q, k, x, rows, attention.scaling, attention.v_proj)
    return finish(block, products.gather(h, rows) + attention.out_proj(heads))


def finish(block: OPTDecoderLayer, h: Tensor) -> Tensor:
    """Return a block's output from its input with the attention's output added, [S, R, H]."""
    before = block.do_layer_norm_before
    h = h if before else block.self_attn_layer_norm(h)
    x = block.final_layer_norm(h) if before else h
    h = h + block.fc2(block.activation_fn(block.fc1(x)))
    return h if before else block.final_layer_norm(h)


def final(model: OPTForCausalLM, h: Tensor) -> Tensor:
    """Return what the head reads, [..., H], of the last block's output."""
    decoder = model.model.decoder
    if decoder.final_layer_norm is not None:
        h = decoder.final_layer_norm(h)
    return h if decoder.project_out is None else decoder.project_out(h)


def read_norm(model: OPTForCausalLM) -> nn.Module:
    """Return the norm after the last block; where norms stand after the layers (OPT-350m), the last one in that block."""
    decoder = model.model.decoder
    last_norm: nn.Module = decoder.layers[-1].final_layer_norm
    return last_norm if decoder.final_layer_norm is None else decoder.final_layer_norm


def head_input(model: OPTForCausalLM, h: Tensor) -> Tensor:
    """Return what the head reads, [..., H], of the input of `read_norm`."""
    decoder = model.model.decoder
    return final(model, h if decoder.final_layer_norm is not None else decoder.layers[-1].final_layer_norm(h))


def head(model: OPTForCausalLM) -> nn.Linear:
    """Return the matrix that makes logits over the vocabulary."""
    return model.lm_head
