"""What a run will need, told before it begins: memory by part, disk and time, from shapes alone; no weight is read.

    facts_of_model(model) -> Facts        config.json, and the headers of the weights where they lie
    work_of(recipe, shape, datasets) -> Work what the recipe and the longest batches ask of it
    parts(shape, work) -> {part: bytes}   a pure function: the parts of the fullest moment

The moments are: loading, the lower layers' cache, a step's blocks, its logits, its update, and a look at held-out rows.
docs/estimate.md has the formulas' reasons, and predicted against measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from ...errors import DataError, UsageError, ZoedgeError
from ...recipe.check import check
from ...recipe.recipe import Recipe, part_name
from .facts import ModelShape, read_model_shape
from .machine import format_bytes, read_memory_budget, read_resident_memory
from .memory import memory_by_moment, peak_memory_parts
from .work import ForwardSize, Workload, compute_workload, count_rule_slots, longest_forwards

REFUSAL_MARGIN = 0.9  # the prediction is right to 10 %: what may fit is not refused


# -- will it fit?


@dataclass(frozen=True)
class Plan:
    """A recipe over a model and its data: all that another setting's memory is computed from."""

    recipe: Recipe
    shape: ModelShape
    datasets: Any
    overhead: int

    @cached_property
    def workload(self) -> Workload:
        return compute_workload(self.recipe, self.shape, self.datasets, self.overhead)

    @cached_property
    def parts(self) -> dict[str, int]:
        return peak_memory_parts(self.shape, self.workload)

    @property
    def needed_bytes(self) -> int:
        return sum(self.parts.values())

    @property
    def moment_totals(self) -> dict[str, int]:
        """Bytes at each moment."""
        return {name: sum(some.values()) for name, some in memory_by_moment(self.shape, self.workload).items()}

    @property
    def fullest_moment(self) -> str:
        """The fullest one."""
        return max(found := self.moment_totals, key=found.__getitem__)

    def with_value(self, key: str, value: Any) -> Plan | None:
        """The same with another value of a key; None: the recipe refuses it."""
        from ...scoring.models.base import DTYPES

        table = self.recipe.resolved()
        section, _, name = key.partition(".")
        table[section] = {"name": value} if name == "name" else table[section] | {name: value}
        try:
            other = replace(self, recipe=check(table, {}, "recipe"))
        except UsageError:
            return None
        if key == "model.compute_dtype":
            other = replace(
                other, shape=replace(self.shape, meta_base=replace(self.shape.meta_base, dtype=DTYPES[value]))
            )
        return other


class Saving(NamedTuple):
    """A change of one key. saved: bytes."""

    key: str
    old: Any
    new: Any
    plan: Plan
    saved_bytes: int

    def format_change(self, most: int) -> str:
        fits = ", fits" if self.plan.needed_bytes <= most else ""
        return f"{self.key} {self.old} -> {self.new} (-{format_bytes(self.saved_bytes)}{fits})"


def make_plan(recipe: Recipe) -> Plan:
    """A recipe, its model's shape and its rows, and what a process holds that has imported all and loaded nothing.

    DataError: whatever is wrong with the source or the rows. Where the tokenizer is not here, rows are taken as the longest
    that there may be.
    """
    from ...scoring.models.families import check_head

    shape = read_model_shape(recipe.model)
    check_head(part_name(recipe.task), recipe.task.head, shape.meta_base.facts)
    datasets = tokenise_datasets(recipe, shape)
    return Plan(recipe, shape, datasets, measure_overhead(shape))


def measure_overhead(shape: ModelShape) -> int:
    """Bytes that a process holds that has imported all and loaded nothing; on a GPU that is not there."""
    if shape.meta_base.device.type == "cuda":
        return 0
    import accelerate  # noqa: F401 - transformers imports it to load
    import torch

    from ...scoring.models.loading import release_memory
    from ...scoring.models.quantised import LinearScales

    LinearScales.has(torch.nn.Identity())  # imports bitsandbytes
    torch.nn.functional.linear(torch.ones(64, 64), torch.ones(64, 64))  # the library of products is loaded once
    release_memory()
    return read_resident_memory()


def predict_parts(plan: Plan, datasets: Any) -> dict[str, int]:
    """Parts of a run that passed the gate as `plan`, now that its rows are tokenised (runs.Texts)."""
    work = compute_workload(plan.recipe, plan.shape, datasets, plan.overhead)
    return peak_memory_parts(
        plan.shape, replace(work, has_cached_weights=plan.workload.has_cached_weights)
    )  # what loading made did not lie there


def list_halves(value: int, least: int = 1) -> list[int]:
    """value / 2, value / 4, ... down to the least."""
    found = []
    while value > least:
        value = max(least, value // 2)
        found.append(value)
    return found


def smaller_settings(plan: Plan) -> Iterator[tuple[str, Any, list[Any]]]:
    """(key, value, smaller ones) of what decides memory, in the order in which they cost least of a run's result."""
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
    """What each key alone can save: its first value with which the run fits, else its smallest. The best first."""
    found, needs = [], plan.needed_bytes
    for key, old, values in smaller_settings(plan):
        last = None
        for value in values:
            other = plan.with_value(key, value)
            if other is None:
                continue
            last = Saving(key, old, value, other, needs - other.needed_bytes)
            if other.needed_bytes <= most:
                break
        if last is not None and last.saved_bytes > 0:
            found.append(last)
    return sorted(found, key=lambda one: (one.plan.needed_bytes > most, -one.saved_bytes))


def fit_plan(plan: Plan, most: int) -> tuple[Plan, list[Saving]]:
    """(the recipe with the fewest, mildest changes that fits into so many bytes, or as near as it comes; the changes)."""
    made: list[Saving] = []
    for key, old, values in smaller_settings(plan):
        if plan.needed_bytes <= most or key not in ("train.rows", "estimator.queries", "train.batch"):
            break
        for value in values:
            if (other := plan.with_value(key, value)) is None:
                continue
            if (saved := plan.needed_bytes - other.needed_bytes) > 0:
                made = [one for one in made if one.key != key] + [Saving(key, old, value, other, saved)]
                plan = other
            if plan.needed_bytes <= most:
                break
    return plan, made


def format_parts(some: dict[str, int]) -> str:
    """weights 3.9 | logits 4.1 | ..., in GB, or all in MB below one."""
    unit, digits, name = (1e9, 1, "GB") if sum(some.values()) >= 1e9 else (1e6, 0, "MB")
    return " | ".join(f"{part} {count / unit:.{digits}f}" for part, count in some.items() if count) + f" {name}"


def format_refusal(plan: Plan, most: int, where: str) -> str:
    """Message 7: what is needed, what there is, the parts, and the one key that saves most."""
    found = find_savings(plan, most)
    best = f" Biggest lever: {found[0].format_change(most)}." if found else ""
    return (
        f"Will not fit: needs {format_bytes(plan.needed_bytes)}, {format_bytes(most)} free on {where}: "
        f"{format_parts(plan.parts)}.{best}"
    )


def check_memory(recipe: Recipe) -> Plan | None:
    """What a run will ask for. DataError, before anything is fetched or loaded, if that cannot fit into the free memory.

    It is refused when MARGIN of what is predicted is more than is free. What the longest batch is asks for the tokenizer,
    which is only needed where the shortest possible one would fit and the longest possible would not. None: something
    else is wrong, for which the run itself has a sentence.
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
            found = replace(plan, datasets=tokenise_datasets(recipe, shape))
        except ZoedgeError:
            return plan
        if found.datasets is None or REFUSAL_MARGIN * found.needed_bytes <= most:
            return plan
        plan = found
    raise DataError(format_refusal(plan, most, where) + " Nothing was downloaded or changed.")


def tokenise_datasets(recipe: Recipe, shape: ModelShape) -> Any:
    """The recipe's rows (runs.Texts), if the tokenizer is here; None: it is not."""
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
    )
