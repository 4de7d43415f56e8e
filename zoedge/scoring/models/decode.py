"""This module generates greedily for many prompts at once, with cached keys and values. An answer ends at the end of a line."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ...core.base import SpaceBase


@lru_cache(maxsize=4)
def stop_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end an answer: the end of a text, and every token with a line break in it."""
    texts = tokenizer.backend_tokenizer.decode_batch([[i] for i in range(len(tokenizer))], skip_special_tokens=False)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return list(dict.fromkeys(end + [i for i, text in enumerate(texts) if "\n" in text]))


def generate_greedy(base: SpaceBase, ids: Tensor, mask: Tensor, copies: int, **options: object) -> Tensor:
    """Return the likeliest next tokens, [copies * S, N], after S prompts, for each copy behind its own virtual tokens.

    Args:
        ids: the prompts' tokens, padded on the left, [S, T].
        mask: 1 where there is a token and 0 where there is padding, [S, T].
        copies: how many points the base holds.
        options: arguments of transformers' `generate`.
    """
    from transformers import DynamicCache

    ids, mask = (x.to(base.device).repeat(copies, 1) for x in (ids, mask))
    h, cache = base.embed_tokens(ids).to(base.dtype), None
    if base.prompt is not None:
        h = torch.cat([base.prompt.repeat_interleave(len(ids) // copies, 0), h], 1)
    if base.past is not None:
        cache, past = DynamicCache(), base.past.repeat_interleave(len(ids) // copies, 0)
        for i, (k, v) in enumerate(past.permute(1, 2, 0, 3, 4, 5)):
            cache.update(k, v, i)
        # `generate` takes as many positions off the front of its inputs as there are in the cache
        h = torch.cat([h.new_zeros(len(h), cache.get_seq_length(), h.shape[2]), h], 1)
    mask = torch.cat([mask.new_ones(len(h), h.shape[1] - mask.shape[1]), mask], 1)
    return base.model.generate(inputs_embeds=h, attention_mask=mask, past_key_values=cache, do_sample=False, **options)


@torch.inference_mode()
def continue_text(
    base: SpaceBase, tokenizer: PreTrainedTokenizerBase, context: int, prompt: str, tokens: int, special: bool
) -> str:
    """Return the greedy continuation of a prompt, as `Base.generate` does. context: the most tokens of a sequence."""
    ids = tokenizer(prompt, add_special_tokens=special, return_tensors="pt").input_ids.to(base.device)
    if ids.shape[1] + tokens > context:
        raise DataError(f"{ids.shape[1]} prompt tokens and {tokens} new ones do not fit {context}.")
    end = base.model.config.eos_token_id
    out = generate_greedy(base, ids, torch.ones_like(ids), 1, max_new_tokens=tokens, pad_token_id=end)
    text: Any = tokenizer.decode(out[0], skip_special_tokens=True)  # of one sequence: a text
    return text


@torch.inference_mode()
def generate_answers(
    base: SpaceBase, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], copies: int, tokens: int
) -> list[list[str]]:
    """Return the first line, without spaces around it, of at most `tokens` greedy tokens after each prompt.

    The result is [copies][prompts]. The batch is repeated copy by copy, as in a forward that scores, so that all points of a
    step answer in one pass.
    """
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    # padding is on the left, so that new tokens follow the prompt
    for row, row_mask, prompt in zip(ids, mask, prompts):
        row[longest - len(prompt) :] = torch.tensor(prompt)
        row_mask[longest - len(prompt) :] = 1
    ends = stop_tokens(tokenizer)
    out = generate_greedy(base, ids, mask, copies, max_new_tokens=tokens, eos_token_id=ends, pad_token_id=ends[0])
    texts = tokenizer.batch_decode(out, skip_special_tokens=True)
    lines = [text.partition("\n")[0].strip() for text in texts]
    return [lines[i : i + len(prompts)] for i in range(0, len(lines), len(prompts))]
