"""This module refuses tokens that the model's table does not have, before anything reads beside the table."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ...errors import DataError, make_printable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def check_token_ids(ids: Iterable[int], tokenizer: PreTrainedTokenizerBase, size: int, where: str) -> None:
    """Refuse tokens beyond the model's table.

    Args:
        ids: the tokens.
        tokenizer: what made them, which spells the one that the message names.
        size: how many tokens the table has, config.json's vocab_size.
        where: what they are of, which begins the message.

    Raises:
        DataError: a token's number is `size` or more.
    """
    largest = max(ids, default=-1)
    if largest >= size:
        spelled = make_printable(str(tokenizer.convert_ids_to_tokens(largest)))
        raise DataError(
            f"{where}: the token '{spelled}' ({largest:,}) is not in the model's table of {size:,} tokens. The tokenizer "
            "is another model's, or was extended and the model was not: use the model's own, or call transformers' "
            "resize_token_embeddings and save the model."
        )
