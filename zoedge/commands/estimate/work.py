"""The work of one step of a recipe: which forward passes it takes, of how many tokens, through how many layers."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from ...core import oracle
from ...core.types import Leaf
from ...recipe.recipe import Recipe
from .facts import FORWARD_TOKENS, HEAD_COLUMNS, ModelShape

if TYPE_CHECKING:
    from ...scoring.models.base import Base

SEARCHED_STEPS = 4096  # steps among which the longest batch is looked for


# -- work


class ForwardSize(NamedTuple):
    """One forward. length: of a sequence; tokens: rows in all; read: rows the loss reads; columns: of the head at a time."""

    length: int
    tokens: int
    loss_rows: int
    head_columns: int

    def with_copies(self, copies: int, ahead: int) -> ForwardSize:
        """So many copies, with virtual tokens ahead of each sequence."""
        more = ahead * (self.tokens // max(1, self.length))
        return ForwardSize(
            self.length + ahead, copies * (self.tokens + more), copies * self.loss_rows, self.head_columns
        )


@dataclass(frozen=True)
class Workload:
    """What a recipe asks of a model. compute: bytes an element, same: of the
    source's own type; elements: trained; slots: of the rule, an element.

    points: in one forward; queries: directions that a step holds; passes: forwards of the batch. step, look: the longest
    forwards of a step and of held-out rows; trunk: of the lower layers' cache. whole: blocks that a step computes at all
    tokens. touched: share of the tables, mapped from their file, in memory. cached: the quantised weights are
    there. typical: token rows of a mean batch.
    """

    cuda: bool
    quantization: str
    double_quant: bool
    compute_itemsize: int
    is_source_type: bool
    trains_all: bool
    elements: int
    slots: int
    points: int
    queries: int
    passes: int
    step: ForwardSize
    evaluation: ForwardSize | None
    trunk: ForwardSize | None
    full_blocks: int
    tables_share: float
    has_cached_weights: bool
    overhead: int
    mean_tokens: int
    trunk_disk: int


def compute_workload(recipe: Recipe, shape: ModelShape, datasets: Any = None, overhead: int = 0) -> Workload:
    """What a recipe asks for. datasets: runs.Texts, or None where they are not tokenised: then the longest there may be.

    overhead: bytes that the process holds without the run. DataError: layers or targets that the model has not.
    """
    base = unattached_base(recipe, shape)
    described, ahead = recipe.space.describe(base), recipe.space.virtual_tokens
    queries, passes = oracle.count_evaluations(recipe.estimator, recipe.train.steps)
    step, look, typical = longest_forwards(recipe, shape, datasets)
    points = max(1, min(recipe.space.points_per_forward, recipe.train.rows // max(1, step.tokens), passes))
    limit = min(recipe.data.max_length, shape.context)
    trunk, disk = None, 0
    if base.cut:
        sequences = [ids for some in list_datasets(datasets) for ids in some.tokens]
        most = max(map(len, sequences), default=limit)
        trunk = ForwardSize(most, max(most, FORWARD_TOKENS // most * most), 0, 0)
        disk = sum(map(len, sequences)) * shape.hidden_width * base.dtype.itemsize
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
        evaluation=look and look.with_copies(1, ahead),
        trunk=trunk,
        full_blocks=shape.layers - base.cut - 1,
        tables_share=1.0,
        has_cached_weights=is_cached(recipe),
        overhead=overhead,
        mean_tokens=typical,
        trunk_disk=disk,
    )


def list_datasets(datasets: Any) -> list[Any]:
    return [s for s in (datasets.train, datasets.valid, datasets.test) if s is not None] if datasets else []


def longest_forwards(recipe: Recipe, shape: ModelShape, datasets: Any) -> tuple[ForwardSize, ForwardSize | None, int]:
    """(the longest batch, the longest look, each in one copy; token rows of a mean batch). datasets None: all of max_length."""
    limit, size = min(recipe.data.max_length, shape.context), recipe.train.batch
    whole = not recipe.task.labels  # the loss reads the whole vocabulary
    most = min(HEAD_COLUMNS, shape.vocabulary)
    if datasets is None:
        step = ForwardSize(limit, size * limit, size * limit if whole else size, most if whole else 1)
        return step, None, size * limit
    train = datasets.train
    columns = most if whole or train.per > 1 else 1
    sizes = batch_token_rows(train, size, recipe.seed, min(recipe.train.steps, SEARCHED_STEPS))
    batch = recipe.task.over(train, recipe.seed, size).batch(find_longest_step(recipe, train))
    flat = batch.flat or batch
    step = ForwardSize((flat.branches or flat).ids.shape[1], batch.tokens, flat.rows.numel(), columns)
    looks = []
    for some in list_datasets(datasets)[1:]:
        wide = max(example_token_rows(some))
        count = min(len(some), max(1, FORWARD_TOKENS // wide))
        looks.append(ForwardSize(wide, count * wide, count * some.per * max(map(len, some.rows)), columns))
    return step, max(looks, key=lambda f: f.tokens, default=None), sum(sizes) // len(sizes)


def find_longest_step(recipe: Recipe, train: Any) -> int:
    """The step of the longest batch (of token rows), among the first LOOKED."""
    sizes = batch_token_rows(train, recipe.train.batch, recipe.seed, min(recipe.train.steps, SEARCHED_STEPS))
    return max(range(len(sizes)), key=sizes.__getitem__)


@lru_cache(maxsize=64)
def batch_token_rows(train: Any, size: int, seed: int, steps: int) -> list[int]:
    """Token rows of the batches, at most: which examples are in one is a function of seed and step alone."""
    rows = example_token_rows(train)
    plans = (train.plan(size, seed, step) for step in range(steps))
    return [len(plan) * max(rows[i] for i in plan) for plan in plans]


@lru_cache(maxsize=8)
def example_token_rows(examples: Any) -> list[int]:
    """Token rows of each example."""
    return [examples.fills(i) for i in range(len(examples))]


def unattached_base(recipe: Recipe, shape: ModelShape) -> Base:
    """Return the model without data as no space has changed it yet: `describe` cuts it and takes positions of it."""
    return replace(shape.meta_base, quantization=recipe.model.quantization, ahead=0, kept={})


def count_rule_slots(rule: Any) -> int:
    """float32 values that a rule keeps an element: asked of the rule itself, for eight."""
    import torch

    held = rule.slots(Leaf("", 0, torch.zeros(8), (), 8), 2)
    return sum(x.numel() for x in held.values() if isinstance(x, torch.Tensor)) // 8


def is_cached(recipe: Recipe) -> bool:
    """Do the model's quantised weights lie in the cache? By their source's name: digests of weights take seconds."""
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
