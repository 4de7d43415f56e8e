"""The facts of the RoBERTa family: attention both ways, norms after, positions after the padding's, a masked-LM head.

The head is dense, gelu, norm, and a decoder tied to the embeddings; `final` is all of it but the decoder.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from ._rows import gather_rows, split_heads

BLOCKS, HEAD = "roberta.encoder.layer", "MaskedLM"
UNUSED = ("roberta.pooler.", "roberta.embeddings.position_ids")  # published checkpoints hold them; no mask needs them


def longest(config: Any) -> int:
    """Tokens of a sequence at most: 512 of roberta-large's 514 positions, as the first is pad_token_id + 1."""
    return int(config.max_position_embeddings - config.pad_token_id - 1)


def embed(model: Any, ids: Tensor, places: Tensor, ahead: Tensor | None = None) -> Tensor:
    """What the first block reads: [S, T, H]. Base.reserve has refused virtual tokens: ahead is None."""
    table = model.roberta.embeddings
    # no mask: sequences are padded on the right, and a padding token inside a text has a place like any other
    return table(input_ids=ids, position_ids=(places + table.padding_idx + 1).expand(len(ids), -1))


def context(model: Any, h: Tensor, places: Tensor, past: Any = None) -> dict[str, Any]:
    return {}


def last(block: Any, h: Tensor, rows: Tensor, attention_mask: Tensor, **_: Any) -> Tensor:
    """The block's output at rows [S, R] alone: [S, R, H]. attention_mask [S, 1, 1, T]: False where there is padding."""
    a, x = block.attention.self, gather_rows(h, rows)
    q, k, v = (split_heads(part(y), a.attention_head_size) for part, y in ((a.query, x), (a.key, h), (a.value, h)))
    out = scaled_dot_product_attention(q, k, v, attn_mask=attention_mask, scale=a.scaling)
    return block.feed_forward_chunk(block.attention.output(out.transpose(1, 2).flatten(2), x))


def final(model: Any, h: Tensor) -> Tensor:
    return model.lm_head.layer_norm(gelu(model.lm_head.dense(h)))


def head(model: Any) -> nn.Linear:
    return model.lm_head.decoder
