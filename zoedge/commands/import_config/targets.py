"""This module converts the names of the modules that an adapter adapts: a word, a list of names, or a regular expression.

A recipe has the last parts of the names and the blocks apart (space.targets, space.layers). PEFT adapts a module if its
whole name matches a regular expression, or if it ends in a name of a list; mlx-lm's names begin inside of a block.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from .source import ConfigConverter

ALL_WORDS = ("all", "all-linear", "all_linear")


class Blocks(NamedTuple):
    """How the modules of a kind of model are named.

    Attributes:
        bases: a part of a base's name that tells the kind.
        prefixes: what stands before a block's number; models that see pictures too have others than those of text alone.
        modules: the names of a block's Linear modules.
    """

    bases: str
    prefixes: tuple[str, ...]
    modules: tuple[str, ...]


KINDS = (  # of bases that zoedge reads; the first is the commonest
    Blocks(
        "llama",
        (
            "model.layers",
            "layers",
            "model.language_model.layers",
            "language_model.model.layers",
            "model.text_model.layers",
        ),
        (
            *(f"self_attn.{word}" for word in ("q_proj", "k_proj", "v_proj", "o_proj")),
            *(f"mlp.{word}" for word in ("gate_proj", "up_proj", "down_proj")),
        ),
    ),
    Blocks(
        "opt-",
        ("model.decoder.layers",),
        (*(f"self_attn.{word}" for word in ("q_proj", "k_proj", "v_proj", "out_proj")), "fc1", "fc2"),
    ),
    Blocks(
        "pythia|neox",
        ("gpt_neox.layers",),
        ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    ),
    Blocks(
        "roberta",
        ("roberta.encoder.layer",),
        (
            *(f"attention.self.{word}" for word in ("query", "key", "value")),
            *(f"{parent}.dense" for parent in ("attention.output", "intermediate", "output")),
        ),
    ),
)
COMMON_PARENTS = {"self_attn", "attn", "attention", "mlp", "self", "output", "intermediate"}
OUTSIDE_BLOCKS = ("lm_head", "embed_tokens", "wte", "wpe", "embed_in", "embed_out", "output", "tok_embeddings")
MOST_BLOCKS = 128  # blocks that a regular expression is tried on; the largest public models have 126
LONGEST_PATTERN = 1000  # characters


def convert_targets(s: ConfigConverter, key: str, value: object, is_pattern: bool = False) -> None:
    """Carry the names of the modules to adapt, and their blocks where the names have numbers.

    Args:
        value: `all`, a list of names, or a text: names with commas between, or a regular expression.
        is_pattern: whether a text that is not `all` is a regular expression over whole names, as PEFT has it.
    """
    if isinstance(value, str) and is_pattern and value not in ALL_WORDS and not value.isidentifier():
        convert_pattern(s, key, value)
        return
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
    if isinstance(names, list) and any(name in ALL_WORDS for name in names):
        s.put(key, "space.targets", "all", given=value)
        return
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        s.lose(key, "names of modules are expected: [q_proj, v_proj]", value)
        return
    convert_names(s, key, names, value)


def convert_names(s: ConfigConverter, key: str, names: list[str], given: object) -> None:
    """Carry a list of names: the last part of each, and the blocks where all of them name some."""
    words: dict[str, set[int]] = {}
    wider: list[str] = []
    for name in names:
        *parents, word = name.split(".")
        if word in OUTSIDE_BLOCKS:
            s.out.lost.append((key, name, "adapters are of the blocks: the embeddings and the head are not adapted"))
            continue
        blocks = {int(part) for part in parents if part.isdigit()}
        words[word] = words.get(word, set()) | blocks
        if parents and not blocks and parents[-1] not in COMMON_PARENTS:
            wider.append(name)
    if not words:
        return
    if wider:
        s.change(key, wider, "every module of a block with that last name is adapted, whatever stands before it")
    chosen = list(words.values())
    put_targets(s, key, list(words), [blocks or None for blocks in chosen], given)


def convert_pattern(s: ConfigConverter, key: str, pattern: str) -> None:
    """Carry a regular expression as the modules and blocks that it matches in the bases that zoedge reads."""
    try:
        matched = match_modules(re.compile(pattern[: LONGEST_PATTERN + 1]), str(s.read("model.source")))
    except re.error:
        matched = {}
    if not matched or len(pattern) > LONGEST_PATTERN:
        how = "a regular expression that matches no module that zoedge knows: space.targets is all, set the names yourself"
        s.change(key, pattern, how)
        return
    everywhere = set(range(MOST_BLOCKS))
    put_targets(
        s, key, list(matched), [None if blocks == everywhere else blocks for blocks in matched.values()], pattern
    )


def match_modules(pattern: re.Pattern[str], base: str) -> dict[str, set[int]]:
    """Return the last names of the modules that a regular expression matches, each with the numbers of its blocks.

    They are those of the kind of model that the base's name tells, or else of the first kind with any.
    """
    for kind in sorted(KINDS, key=lambda kind: re.search(kind.bases, base, re.IGNORECASE) is None):
        matched: dict[str, set[int]] = {}
        for name in kind.modules:
            numbers = range(MOST_BLOCKS)
            blocks = {i for i in numbers for start in kind.prefixes if pattern.fullmatch(f"{start}.{i}.{name}")}
            if blocks:
                word = name.rpartition(".")[2]
                matched[word] = matched.get(word, set()) | blocks
        if matched:
            return matched
    return {}


def put_targets(
    s: ConfigConverter, key: str, words: list[str], blocks: Iterable[set[int] | None], given: object
) -> None:
    """Write modules and their blocks into the recipe, which has one list of blocks for all of them.

    blocks: those of each module; None: all.
    """
    s.put(key, "space.targets", words, given=given)
    distinct: list[set[int] | None] = []
    for chosen in blocks:
        if chosen not in distinct:
            distinct.append(chosen)
    if len(distinct) > 1:
        s.change(
            key, given, "these modules are adapted in all blocks; their own blocks differ, and a recipe has one list"
        )
    elif distinct[0] is not None:
        s.put(key, "space.layers", sorted(distinct[0]), given=given)
