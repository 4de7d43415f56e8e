"""This module finds words for labels that are one token each in a model's tokenizer, which makes every step cheaper."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STEM = "Label:"  # an option is tried behind this, as it stands behind a prompt


class Options(NamedTuple):
    """The words that stand for labels.

    Attributes:
        words: for each label, the text that follows the prompt.
        legend: lines for the prompt that explain letters or numbers; "": the words are the labels' own.
    """

    words: dict[str, str]
    legend: str


def choose_options(labels: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Options:
    """Return a token for each label: its own word, a word of it, a letter or a number; or the labels whole as a last resort."""
    words: dict[str, str] = {}
    tokens: set[int] = set()
    for label in labels:
        for word in list_words(label, labels):
            token = single_token(word, tokenizer)
            if token is not None and token not in tokens:
                words[label] = word
                tokens.add(token)
                break
    if len(words) == len(labels):
        return Options(words, "")
    signs = string.ascii_uppercase if len(labels) <= len(string.ascii_uppercase) else [str(i) for i in range(1, 100)]
    for space in (" ", ""):
        marked = dict(zip(labels, (f"{space}{sign}" for sign in signs)))
        ids = [single_token(word, tokenizer) for word in marked.values()]
        if None not in ids and len(set(ids)) == len(labels):
            return Options(marked, "".join(f"{word.strip()}: {label}\n" for label, word in marked.items()))
    return Options({label: f" {label}" for label in labels}, "")


def list_words(label: str, labels: Sequence[str]) -> Iterator[str]:
    """Yield texts that may stand for a label, the nearest first: itself, and words of it that no other label has."""
    text = label.strip()
    yield from (f" {text}", f" {text.lower()}", text, text.lower())
    others = {part for other in labels if other != label for part in split_words(other)}
    for part in split_words(text):
        if part not in others:
            yield f" {part}"


def split_words(label: str) -> list[str]:
    """Return the words of a label in small letters, the longest first."""
    return sorted((part.lower() for part in re.split(r"[\W_]+", label) if len(part) > 2), key=len, reverse=True)


def single_token(word: str, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the token that a text is behind a prompt; None: it is several, unknown, or changes the prompt's own."""
    before = tokenizer(STEM, add_special_tokens=False).input_ids
    ids = tokenizer(STEM + word, add_special_tokens=False).input_ids
    is_one = len(ids) == len(before) + 1 and ids[:-1] == before and ids[-1] != tokenizer.unk_token_id
    return ids[-1] if is_one else None
