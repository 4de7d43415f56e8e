"""This module predicts whether a run fits into memory, before it begins: from shapes alone, no weight is read.

    read_model_shape(model) -> ModelShape                   reads config.json and the headers of the weights (facts.py)
    compute_workload(recipe, shape, datasets) -> Workload   the recipe's demands, with its longest batches (work.py)
    memory_by_moment(shape, workload) -> bytes              by moment and part (memory.py)
    peak_memory_parts(shape, workload) -> {part: bytes}     the parts of the moment that needs most

A run's moments are: loading, filling the lower layers' cache, a step's blocks, its logits, its update, and scoring
held-out rows (which is called `look`). docs/estimate.md explains the formulas, and compares predicted with measured memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from ...errors import DataError, UsageError, ZoedgeError
from ...recipe.check import check
from ...recipe.recipe import Recipe, part_name
from .facts import ModelShape, read_model_shape
from .machine import format_bytes, read_memory_budget, read_resident_memory
from .memory import memory_by_moment, peak_memory_parts
from .work import ForwardSize, Workload, compute_workload, count_rule_slots, longest_forwards

if TYPE_CHECKING:
    from ...scoring.texts import Datasets

REFUSAL_MARGIN = 0.9  # a prediction may be 10 % too high: a run that may fit is not refused
Value = str | int  # of a recipe's key


@dataclass(frozen=True)
class Plan:
    """A recipe, its model's shape and its rows: all that the memory of this run, or of one with another setting, depends on.

    datasets: None where the rows are not tokenised: then every sequence is taken to be as long as it may be.
    overhead: bytes that the process holds without the run.
    """

    recipe: Recipe
    shape: ModelShape
    datasets: Datasets | None
    overhead: int

    @cached_property
    def workload(self) -> Workload:
        """The work of a step of this recipe."""
        return compute_workload(self.recipe, self.shape, self.datasets, self.overhead)

    @cached_property
    def parts(self) -> dict[str, int]:
        """Bytes by part at the fullest moment."""
        return peak_memory_parts(self.shape, self.workload)

    @property
    def needed_bytes(self) -> int:
        """The peak: all bytes at the fullest moment."""
        return sum(self.parts.values())

    @property
    def moment_totals(self) -> dict[str, int]:
        """Bytes in all at each moment, by its name."""
        return {name: sum(parts.values()) for name, parts in memory_by_moment(self.shape, self.workload).items()}

    @property
    def fullest_moment(self) -> str:
        """The name of the moment that needs most."""
        return max(totals := self.moment_totals, key=totals.__getitem__)

    def with_value(self, key: str, value: Value) -> Plan | None:
        """Return the plan with another value of a key, such as `train.rows`; None: the recipe refuses that value."""
        from ...scoring.models.base import DTYPES

        table = self.recipe.resolved()
        section, _, name = key.partition(".")
        table[section] = {"name": value} if name == "name" else table[section] | {name: value}
        try:
            other = replace(self, recipe=check(table, {}, "recipe"))
        except UsageError:
            return None
        if key == "model.compute_dtype":
            base = replace(self.shape.meta_base, dtype=DTYPES[str(value)])
            other = replace(other, shape=replace(self.shape, meta_base=base))
        return other


class Saving(NamedTuple):
    """A change of one key, the plan that it leads to, and the bytes that it saves at the peak."""

    key: str
    old: Value
    new: Value
    plan: Plan
    saved_bytes: int

    def format_change(self, most: int) -> str:
        """Return the change, the memory that it saves, and whether the run then fits into `most` bytes."""
        fits = ", fits" if self.plan.needed_bytes <= most else ""
        return f"{self.key} {self.old} -> {self.new} (-{format_bytes(self.saved_bytes)}{fits})"


def make_plan(recipe: Recipe) -> Plan:
    """Read the model's shape and tokenise the rows of a recipe, and measure what this process holds.

    Rows are taken to be as long as they may be where the tokenizer is not on this machine. DataError: something is wrong with
    the source or the rows.
    """
    from ...scoring.models.families import check_head

    shape = read_model_shape(recipe.model)
    check_head(part_name(recipe.task), recipe.task.head, shape.meta_base.facts)
    datasets = tokenise_datasets(recipe, shape)
    return Plan(recipe, shape, datasets, measure_overhead(shape))


def measure_overhead(shape: ModelShape) -> int:
    """Return the bytes that this process holds once it has imported everything and loaded no model; 0 on a GPU."""
    if shape.meta_base.device.type == "cuda":
        return 0
    import accelerate  # noqa: F401 - transformers imports it to load
    import torch

    from ...scoring.models.loading import release_memory
    from ...scoring.models.quantised import LinearScales

    LinearScales.has(torch.nn.Identity())  # imports bitsandbytes
    torch.nn.functional.linear(torch.ones(64, 64), torch.ones(64, 64))  # the first product loads its library
    release_memory()
    return read_resident_memory()


def predict_parts(plan: Plan, datasets: Datasets) -> dict[str, int]:
    """Return the bytes by part of a run that `check_memory` let begin as `plan`, now that its rows are tokenised."""
    work = compute_workload(plan.recipe, plan.shape, datasets, plan.overhead)
    # by now the cache has the quantised weights; the prediction asks whether it had them before the base was loaded
    return peak_memory_parts(plan.shape, replace(work, has_cached_weights=plan.workload.has_cached_weights))


def list_halves(value: int, least: int = 1) -> list[int]:
    """Return value / 2, value / 4 and so on, down to `least`."""
    halves = []
    while value > least:
        value = max(least, value // 2)
        halves.append(value)
    return halves


def smaller_settings(plan: Plan) -> Iterator[tuple[str, Value, Sequence[Value]]]:
    """Yield (key, its value, smaller values) for the settings that decide memory, those that harm the result least first."""
    from ...methods.spaces.lora import Lora

    recipe = plan.recipe
    tokens = max(1, longest_forwards(recipe, plan.shape, plan.datasets)[0].tokens)
    yield "train.rows", recipe.train.rows, list_halves(recipe.train.rows, min(tokens, recipe.train.rows))
    if (queries := recipe.estimator.queries) > 1:
        yield "estimator.queries", queries, list_halves(queries)
    yield "train.batch", recipe.train.batch, list_halves(recipe.train.batch)
    if "nf4" in recipe.space.only_with.get("model.quantization", ("nf4",)) and recipe.model.quantization in (
        "none",
        "int8",
    ):
        yield "model.quantization", recipe.model.quantization, ["nf4"]
    if recipe.model.quantization == "none" and plan.shape.meta_base.dtype.itemsize == 4:
        yield "model.compute_dtype", recipe.model.compute_dtype, ["bf16"]
    if isinstance(recipe.space, Lora) and recipe.space.rank > 1:
        yield "space.rank", recipe.space.rank, list_halves(recipe.space.rank)
    if count_rule_slots(recipe.rule):
        yield "rule.name", part_name(recipe.rule), ["sgd"]


def find_savings(plan: Plan, most: int) -> list[Saving]:
    """Return what each key alone can save: the first smaller value with which the run fits into `most` bytes, or the smallest.

    Changes with which the run fits come first, then those that save most.
    """
    savings = []
    for key, old, values in smaller_settings(plan):
        saving = None
        for value in values:
            other = plan.with_value(key, value)
            if other is None:
                continue
            saving = Saving(key, old, value, other, plan.needed_bytes - other.needed_bytes)
            if other.needed_bytes <= most:
                break
        if saving is not None and saving.saved_bytes > 0:
            savings.append(saving)
    return sorted(savings, key=lambda one: (one.plan.needed_bytes > most, -one.saved_bytes))


def fit_plan(plan: Plan, most: int) -> tuple[Plan, list[Saving]]:
    """Shrink train.rows, estimator.queries and train.batch, in this order, until the run fits into `most` bytes.

    Return the new plan, which may still be too large, and the changes that led to it.
    """
    savings: list[Saving] = []
    for key, old, values in smaller_settings(plan):
        if plan.needed_bytes <= most or key not in ("train.rows", "estimator.queries", "train.batch"):
            break
        for value in values:
            if (other := plan.with_value(key, value)) is None:
                continue
            if (saved := plan.needed_bytes - other.needed_bytes) > 0:
                savings = [one for one in savings if one.key != key] + [Saving(key, old, value, other, saved)]
                plan = other
            if plan.needed_bytes <= most:
                break
    return plan, savings


def format_parts(parts: dict[str, int]) -> str:
    """Return the parts as `weights 3.9 | logits 4.1 GB`; in MB where all together are less than 1 GB."""
    unit, digits, name = (1e9, 1, "GB") if sum(parts.values()) >= 1e9 else (1e6, 0, "MB")
    return " | ".join(f"{part} {count / unit:.{digits}f}" for part, count in parts.items() if count) + f" {name}"


def format_refusal(plan: Plan, most: int, where: str) -> str:
    """Return the sentence that refuses a run: what it needs, what is free, the parts, and the one change that helps most."""
    savings = find_savings(plan, most)
    best = f" Biggest lever: {savings[0].format_change(most)}." if savings else ""
    return (
        f"Will not fit: needs {format_bytes(plan.needed_bytes)}, {format_bytes(most)} free on {where}: "
        f"{format_parts(plan.parts)}.{best}"
    )


def check_memory(recipe: Recipe) -> Plan | None:
    """Predict a run's memory, and refuse a run that cannot fit, before anything is downloaded or loaded.

    A run is refused if REFUSAL_MARGIN times the prediction is more than is free. The rows are tokenised only if their length
    decides: where the run would fit with the shortest possible sequences, and not with the longest possible ones.

    Returns the plan; None: something else is wrong with the recipe, which the run itself will report. DataError: the run cannot
    fit.
    """
    try:
        shape = read_model_shape(recipe.model)
        plan = Plan(recipe, shape, None, measure_overhead(shape))
        least = replace(
            plan.workload, step=ForwardSize(1, 1, 1, 1), evaluation=None, trunk=None, points=1, tables_share=0.0
        )
    except ZoedgeError:
        return None
    most, where = read_memory_budget(plan.workload.cuda)
    if plan.needed_bytes <= most:
        return plan
    if REFUSAL_MARGIN * sum(peak_memory_parts(shape, least).values()) <= most:
        try:
            exact = replace(plan, datasets=tokenise_datasets(recipe, shape))
        except ZoedgeError:
            return plan
        if exact.datasets is None or REFUSAL_MARGIN * exact.needed_bytes <= most:
            return plan
        plan = exact
    raise DataError(format_refusal(plan, most, where) + " Nothing was downloaded or changed.")


def tokenise_datasets(recipe: Recipe, shape: ModelShape) -> Datasets | None:
    """Return the recipe's tokenised rows; None: the tokenizer is not on this machine."""
    from ...scoring.models.loading import load_tokenizer
    from ...scoring.texts import load_datasets

    if shape.folder is None or not (shape.folder / "tokenizer.json").is_file():
        return None
    ahead = recipe.space.virtual_tokens
    return load_datasets(
        recipe.data,
        recipe.task,
        recipe.seed,
        load_tokenizer(shape.folder),
        min(recipe.data.max_length, shape.context - ahead),
        shape.vocabulary,
    )
