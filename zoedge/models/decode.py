"""Greedy answers to many prompts at once, keys and values kept, up to the end of a line."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch


@lru_cache(maxsize=4)
def stops(tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the end of a text, and every token with a line break in it."""
    texts = tokenizer.backend_tokenizer.decode_batch([[i] for i in range(len(tokenizer))], skip_special_tokens=False)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return list(dict.fromkeys(end + [i for i, text in enumerate(texts) if "\n" in text]))


@torch.inference_mode()
def answers(base: Any, prompts: list[list[int]], copies: int, tokens: int) -> list[list[str]]:
    """The first line, spaces stripped, of at most `tokens` likeliest tokens after each prompt: [copies][prompts].

    The batch is tiled as in a forward that scores, copy by copy, so that all points of a step answer in one pass.
    """
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, seen, prompt in zip(ids, mask, prompts):  # padded on the left: new tokens follow the prompt at once
        row[longest - len(prompt) :] = torch.tensor(prompt)
        seen[longest - len(prompt) :] = 1
    ids, mask = (x.repeat(copies, 1).to(base.device) for x in (ids, mask))
    ends = stops(base.tokenizer)
    out = base.model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, eos_token_id=ends,
        pad_token_id=ends[0],
    )  # fmt: skip
    texts = base.tokenizer.batch_decode(out[:, longest:], skip_special_tokens=True)
    lines = [text.partition("\n")[0].strip() for text in texts]
    return [lines[i : i + len(prompts)] for i in range(0, len(lines), len(prompts))]
