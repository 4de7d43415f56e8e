"""This module generates greedily with cached keys and values: for many prompts at once, or one text up to where it ends.

Greedy is the likeliest token and nothing else. A base's generation_config.json may hold a repetition penalty, suppressed
tokens or a least length, which transformers would apply; all of them are set aside while zoedge generates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import DataError
from .vocabulary import check_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ...core.base import SpaceBase


@lru_cache(maxsize=4)
def stop_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end an answer: the end of a text, and every token with a line break in it."""
    texts = tokenizer.backend_tokenizer.decode_batch([[i] for i in range(len(tokenizer))], skip_special_tokens=False)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return list(dict.fromkeys(end + [i for i, text in enumerate(texts) if "\n" in text]))


def end_tokens(base: SpaceBase) -> list[int]:
    """Return the tokens that end a text, as the tokenizer, config.json and generation_config.json name them.

    The files name one or several: a LLaMA 3 for instructions has three.
    """
    ids: list[int] = []
    for named in (
        base.tokenizer.eos_token_id,
        base.model.generation_config.eos_token_id,
        base.model.config.eos_token_id,
    ):
        ids += [] if named is None else [named] if isinstance(named, int) else named
    return list(dict.fromkeys(ids))


def generate_greedy(
    base: SpaceBase, ids: Tensor, mask: Tensor, copies: int, *, tokens: int, ends: Iterable[int] = (), **options: Any
) -> Tensor:
    """Return the likeliest next tokens, [copies * S, N], after S prompts, for each copy behind its own virtual tokens.

    Args:
        ids: the prompts' tokens, padded on the left, [S, T].
        mask: 1 where there is a token and 0 where there is padding, [S, T].
        copies: how many points the base holds.
        tokens: how many new tokens there may be.
        ends: tokens that end an answer, besides `end_tokens`.
        options: more arguments of transformers' `generate`.
    """
    from transformers import DynamicCache, GenerationConfig

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
    stops = list(dict.fromkeys([*end_tokens(base), *ends]))
    # a finished answer is filled with a token that the model can read
    fill = next((i for i in stops if i < base.model.config.vocab_size), 0)
    own, base.model.generation_config = base.model.generation_config, GenerationConfig()
    try:
        return base.model.generate(
            inputs_embeds=h,
            attention_mask=mask,
            past_key_values=cache,
            do_sample=False,
            max_new_tokens=tokens,
            eos_token_id=stops or None,
            pad_token_id=fill,
            **options,
        )
    finally:
        base.model.generation_config = own


@torch.inference_mode()
def continue_text(base: SpaceBase, context: int, prompt: str, tokens: int, special: bool, end: str) -> str:
    """Return the greedy continuation of a prompt, as `Base.generate` does. context: the most tokens of a sequence."""
    ids = base.tokenizer(prompt, add_special_tokens=special).input_ids
    if len(ids) + tokens > context:
        raise DataError(f"{len(ids)} prompt tokens and {tokens} new ones do not fit {context}.")
    return generate_text(base, ids, tokens, end)


@torch.inference_mode()
def generate_answers(base: SpaceBase, prompts: list[list[int]], copies: int, tokens: int) -> list[list[str]]:
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
    out = generate_greedy(base, ids, mask, copies, tokens=tokens, ends=stop_tokens(base.tokenizer))
    texts = base.tokenizer.batch_decode(out, skip_special_tokens=True)
    lines = [text.partition("\n")[0].strip() for text in texts]
    return [lines[i : i + len(prompts)] for i in range(0, len(lines), len(prompts))]


@torch.inference_mode()
def generate_text(base: SpaceBase, ids: list[int], tokens: int, end: str) -> str:
    """Return the greedy continuation of a prompt's tokens, up to a text that ends it.

    end: the text, which may be several tokens; "": only `end_tokens` end the continuation.
    """
    from transformers import StoppingCriteriaList

    check_token_ids(ids, base.tokenizer, base.model.config.vocab_size, "The prompt")
    tokenizer, prompt = base.tokenizer, torch.tensor([ids])

    def decode(new: list[int], special: bool = False) -> str:
        return str(tokenizer.decode(new, skip_special_tokens=not special, clean_up_tokenization_spaces=False))

    prefix = decode(ids, special=True)

    def is_ended(new: list[int]) -> bool:
        return bool(end) and end in decode([*ids, *new], special=True)[len(prefix) :]

    def stop(new: Tensor, scores: Tensor, **_: object) -> Tensor:
        return torch.tensor([is_ended(new[0].tolist())], device=new.device)

    criteria: list[Callable[..., Tensor]] = [stop]
    out = generate_greedy(
        base, prompt, torch.ones_like(prompt), 1, tokens=tokens, stopping_criteria=StoppingCriteriaList(criteria)
    )
    new = out[0].tolist()
    text = str(tokenizer.decode(new, skip_special_tokens=True))
    if not is_ended(new):
        return text
    place = text.rfind(end) if end in text or not end.strip() else text.rfind(end.strip())
    return text if place < 0 else text[:place]  # a special token is not in the text
