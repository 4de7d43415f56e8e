"""This module computes the work of one step of a recipe: its forward passes, their tokens, and the blocks they run through."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, cast

from ...core import oracle
from ...core.types import AbstractRule, Leaf
from ...recipe.recipe import Recipe
from ...run.visits import list_visited_sequences
from .facts import FORWARD_TOKENS, HEAD_COLUMNS, KEPT_BYTES, ModelShape

if TYPE_CHECKING:
    from ...core.base import SpaceBase
    from ...scoring.tasks._examples import Examples
    from ...scoring.texts import Datasets

SEARCHED_STEPS = 4096  # the longest batch is looked for among so many first steps


class ForwardSize(NamedTuple):
    """The size of one forward pass."""

    length: int  # tokens of a sequence
    tokens: int  # token rows of all sequences, padding included
    loss_rows: int  # token rows that the loss reads
    head_columns: int  # columns of the head that are computed at a time; 1: only those of some options

    def with_copies(self, copies: int, ahead: int) -> ForwardSize:
        """Return the size with `copies` copies of every sequence, and `ahead` virtual tokens in front of each."""
        tokens = self.tokens + ahead * (self.tokens // max(1, self.length))
        return ForwardSize(self.length + ahead, copies * tokens, copies * self.loss_rows, self.head_columns)


@dataclass(frozen=True)
class Workload:
    """What a recipe asks of a model: what is trained, and the largest forward passes of its moments."""

    cuda: bool
    quantization: str
    double_quant: bool
    compute_itemsize: int  # bytes of an element of the compute type
    is_source_type: bool  # the compute type is that of the source's files
    trains_all: bool  # the base's own weights are trained: space full
    elements: int  # that are trained
    slots: int  # values that the rule keeps for each trained element
    points: int  # held in one forward pass
    queries: int  # draws of noise that a step holds
    passes: int  # forward passes of the batch in a step, one for each loss
    step: ForwardSize  # of the longest batch, with all its points
    evaluation: ForwardSize | None  # of the longest batch of held-out rows
    trunk: ForwardSize | None  # of the longest batch that fills the lower layers' cache
    full_blocks: int  # blocks that a step computes at all tokens; the last block computes most of its parts at few
    tables_share: (
        float  # the share of the tables of tokens that is in memory, where they are mapped from their file: 0 .. 1
    )
    has_cached_weights: bool  # the cache has the quantised weights already
    overhead: int  # bytes that the process holds without the run
    mean_tokens: int  # token rows of a mean batch, in one copy
    trunk_tokens: int  # of all sequences whose lower layers' outputs the run computes
    trunk_disk: int  # bytes of these outputs on the disk
    kept_weights: int  # bytes of the dequantised weights that the blocks above keep


def compute_workload(
    recipe: Recipe, shape: ModelShape, datasets: Datasets | None = None, overhead: int = 0
) -> Workload:
    """Return what a recipe asks of a model.

    Args:
        datasets: the tokenised rows; None: every sequence is taken to be as long as it may be.
        overhead: bytes that the process holds without the run.

    Raises:
        DataError: the recipe names layers or modules that the model does not have.
    """
    base = unattached_base(recipe, shape)
    described, ahead = recipe.space.describe(base), recipe.space.virtual_tokens
    queries, passes = oracle.count_evaluations(recipe.estimator, recipe.train.steps)
    step, evaluation, mean_tokens = longest_forwards(recipe, shape, datasets)
    points = max(1, min(recipe.space.points_per_forward, recipe.train.rows // max(1, step.tokens), passes))
    limit = min(recipe.data.max_length, shape.context)
    trunk, trunk_tokens = None, 0
    if base.cut:
        lengths = [len(ids) for ids in list_trunk_sequences(recipe, datasets)]
        longest = max(lengths, default=limit)
        trunk = ForwardSize(longest, max(longest, FORWARD_TOKENS // longest * longest), 0, 0)
        trunk_tokens = sum(lengths)
    return Workload(
        cuda=base.device.type == "cuda",
        quantization=recipe.model.quantization,
        double_quant=recipe.model.double_quant,
        compute_itemsize=base.dtype.itemsize,
        is_source_type=str(base.dtype) == f"torch.{shape.stored_type}",
        trains_all=recipe.space.own_start,
        elements=recipe.space.elements(described),
        slots=count_rule_slots(recipe.rule),
        points=points,
        queries=queries * recipe.rule.draws,
        passes=passes,
        step=step.with_copies(points, ahead),
        evaluation=evaluation and evaluation.with_copies(1, ahead),
        trunk=trunk,
        full_blocks=shape.layers - base.cut - 1,
        tables_share=1.0,
        has_cached_weights=is_cached(recipe),
        overhead=overhead,
        mean_tokens=mean_tokens,
        trunk_tokens=trunk_tokens,
        trunk_disk=trunk_tokens * shape.hidden_width * base.dtype.itemsize,
        kept_weights=count_kept_weights(recipe, shape, base),
    )


def count_kept_weights(recipe: Recipe, shape: ModelShape, base: SpaceBase) -> int:
    """Return the bytes of the dequantised weights that a run keeps: of the blocks above a cached trunk, if they are few."""
    if recipe.model.quantization == "none" or not base.cut or base.device.type != "cpu":
        return 0
    first = f"{shape.meta_base.facts.BLOCKS}.0."
    block = sum(out * wide for name, out, wide in shape.linears if name.startswith(first))
    count = (shape.layers - base.cut) * block * base.dtype.itemsize
    return count if count <= KEPT_BYTES else 0


def list_trunk_sequences(recipe: Recipe, datasets: Datasets | None) -> list[list[int]]:
    """Return the sequences that a run reads: of training rows those that it visits, of held-out rows all."""
    if datasets is None:
        return []
    train, *held_out = list_datasets(datasets)
    visited = list_visited_sequences(recipe, train)
    sequences = train.tokens if visited is None else [train.tokens[i] for i in visited]
    return [*sequences, *(ids for examples in held_out for ids in examples.tokens)]


def list_datasets(datasets: Datasets | None) -> list[Examples]:
    """Return the sets of rows that there are, in the order training, validation, test."""
    return [s for s in (datasets.train, datasets.valid, datasets.test) if s is not None] if datasets else []


def longest_forwards(
    recipe: Recipe, shape: ModelShape, datasets: Datasets | None
) -> tuple[ForwardSize, ForwardSize | None, int]:
    """Return (the size of the longest batch, that of the longest batch of held-out rows, token rows of a mean batch).

    Each is for one copy. Without datasets all sequences have data.max_length tokens, and there are no held-out rows.
    """
    limit, size = min(recipe.data.max_length, shape.context), recipe.train.batch
    reads_vocabulary = not recipe.task.labels
    chunk = min(HEAD_COLUMNS, shape.vocabulary)
    if datasets is None:
        loss_rows, columns = (size * limit, chunk) if reads_vocabulary else (size, 1)
        return ForwardSize(limit, size * limit, loss_rows, columns), None, size * limit
    train = datasets.train
    columns = chunk if reads_vocabulary or train.sequences_each > 1 else 1
    sizes = batch_token_rows(train, size, recipe.seed, min(recipe.train.steps, SEARCHED_STEPS))
    batch = recipe.task.make_training(train, recipe.seed, size).batch(find_longest_step(recipe, train))
    flat = batch.flat or batch
    step = ForwardSize((flat.branches or flat).ids.shape[1], batch.tokens, flat.rows.numel(), columns)
    evaluations = []
    for examples in list_datasets(datasets)[1:]:
        longest = max(example_token_rows(examples))
        count = min(len(examples), max(1, FORWARD_TOKENS // longest))
        loss_rows = count * examples.sequences_each * max(map(len, examples.rows))
        evaluations.append(ForwardSize(longest, count * longest, loss_rows, columns))
    return step, max(evaluations, key=lambda f: f.tokens, default=None), sum(sizes) // len(sizes)


def find_longest_step(recipe: Recipe, train: Examples) -> int:
    """Return the step whose batch has the most token rows, among the first SEARCHED_STEPS."""
    sizes = batch_token_rows(train, recipe.train.batch, recipe.seed, min(recipe.train.steps, SEARCHED_STEPS))
    return max(range(len(sizes)), key=sizes.__getitem__)


@lru_cache(maxsize=64)
def batch_token_rows(train: Examples, size: int, seed: int, steps: int) -> list[int]:
    """Return the token rows of each step's batch, at most. The seed and the step alone decide which examples are in a batch."""
    rows = example_token_rows(train)
    plans = (train.plan(size, seed, step) for step in range(steps))
    return [len(plan) * max(rows[i] for i in plan) for plan in plans]


@lru_cache(maxsize=8)
def example_token_rows(examples: Examples) -> list[int]:
    """Return the token rows of each example."""
    return [examples.count_token_rows(i) for i in range(len(examples))]


def unattached_base(recipe: Recipe, shape: ModelShape) -> SpaceBase:
    """Return the model without data and without traces of a space: `describe` cuts it and reserves positions in it."""
    base = replace(shape.meta_base, quantization=recipe.model.quantization, ahead=0, kept={})
    return cast("SpaceBase", base)  # mypy takes the function in `Base.project` for a method, which cannot be set


def count_rule_slots(rule: AbstractRule) -> int:
    """Return how many float32 values a rule keeps for each trained element. The rule itself is asked, for eight elements."""
    import torch

    slots = rule.slots(Leaf("", 0, torch.zeros(8), (), 8), 2)
    return sum(x.numel() for x in slots.values() if isinstance(x, torch.Tensor)) // 8


def is_cached(recipe: Recipe) -> bool:
    """Return whether the cache has the model's quantised weights, judged by the source's name: a digest would take seconds."""
    from ...scoring.sources.cache import cache_folder

    model = recipe.model
    for note in cache_folder("quantised").glob(f"*-{model.quantization}/zoedge.json"):
        try:
            source = json.loads(note.read_bytes())["source"]
            scheme = json.loads((note.parent / "config.json").read_bytes())["quantization_config"]
            double = scheme.get("bnb_4bit_use_double_quant", False)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue
        if source == model.source and (model.quantization == "int8" or double == model.double_quant):
            return True
    return model.quantization == "none"
