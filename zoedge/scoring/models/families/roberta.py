"""The RoBERTa family: attention both ways, norms after the layers, positions after the padding's, and a masked-LM head.

The head is a dense layer, gelu, a norm, and a decoder that is tied to the embeddings. `final` is all of it but the decoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from ._rows import gather_rows, split_heads

if TYPE_CHECKING:
    from transformers import PreTrainedConfig
    from transformers.models.roberta.modeling_roberta import RobertaForMaskedLM, RobertaLayer

    from ..past import PastKeyValues

BLOCKS, HEAD = "roberta.encoder.layer", "MaskedLM"
# published checkpoints hold these tensors, and a masked language model reads neither
UNUSED = ("roberta.pooler.", "roberta.embeddings.position_ids")
WRITE = "output.dense"
WRITES = ("attention.output.dense", WRITE)
SHARED: tuple[str, ...] = ()


def longest(config: PreTrainedConfig) -> int:
    """Return how many tokens a sequence may have.

    Roberta-large has 514 positions for 512 tokens, because the first token's position is pad_token_id + 1.
    """
    return int(config.max_position_embeddings - config.pad_token_id - 1)


def embed(model: RobertaForMaskedLM, ids: Tensor, places: Tensor, ahead: Tensor | None = None) -> Tensor:
    """Return what the first block reads, [S, T, H], of token ids [S, T]."""
    # ahead is None, as Base.reserve refuses virtual tokens for this family
    table = model.roberta.embeddings
    # positions need no mask: padding is on the right, and a padding token inside a text has a position like any other
    return table(input_ids=ids, position_ids=(places + table.padding_idx + 1).expand(len(ids), -1))


def context(model: RobertaForMaskedLM, h: Tensor, places: Tensor, past: PastKeyValues | None = None) -> dict[str, Any]:
    """Return the arguments of every block besides the hidden states and the mask: there are none."""
    return {}


def last(block: RobertaLayer, h: Tensor, rows: Tensor, attention_mask: Tensor, **_: object) -> Tensor:
    """Return the last block's output at the rows [S, R] alone, [S, R, H]. attention_mask: [S, 1, 1, T]."""
    attention, x = block.attention.self, gather_rows(h, rows)
    size = attention.attention_head_size
    q, k, v = (split_heads(part, size) for part in (attention.query(x), attention.key(h), attention.value(h)))
    heads = scaled_dot_product_attention(q, k, v, attn_mask=attention_mask, scale=attention.scaling)
    return block.feed_forward_chunk(block.attention.output(heads.transpose(1, 2).flatten(2), x))


def final(model: RobertaForMaskedLM, h: Tensor) -> Tensor:
    """Return what the head reads, [..., H], of the last block's output."""
    return model.lm_head.layer_norm(gelu(model.lm_head.dense(h)))


def read_norm(model: RobertaForMaskedLM) -> nn.Module:
    """Return the last norm of the last block."""
    last_block = cast("RobertaLayer", model.roberta.encoder.layer[-1])
    return last_block.output.LayerNorm


def head_input(model: RobertaForMaskedLM, h: Tensor) -> Tensor:
    """Return what the decoder reads, [..., H], of the input of `read_norm`."""
    return final(model, read_norm(model)(h))


def head(model: RobertaForMaskedLM) -> nn.Linear:
    """Return the matrix that makes logits over the vocabulary."""
    return model.lm_head.decoder
