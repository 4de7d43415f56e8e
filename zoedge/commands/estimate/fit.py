"""What a run will need, told before it begins: memory by part, disk and time, from shapes alone; no weight is read.

    facts_of_model(model) -> Facts        config.json, and the headers of the weights where they lie
    work_of(recipe, facts, texts) -> Work what the recipe and the longest batches ask of it
    parts(facts, work) -> {part: bytes}   a pure function: the parts of the fullest moment

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
from .work import ForwardSize, Workload, compute_workload, count_rule_slots, describe_space, longest_forwards

REFUSAL_MARGIN = 0.9  # the prediction is right to 10 %: what may fit is not refused


# -- will it fit?


@dataclass(frozen=True)
class Plan:
    """A recipe over a model and its data: all that another setting's memory is computed from."""

    recipe: Recipe
    facts: ModelShape
    texts: Any
    overhead: int

    @cached_property
    def work(self) -> Workload:
        return compute_workload(self.recipe, self.facts, self.texts, self.overhead)

    @cached_property
    def parts(self) -> dict[str, int]:
        return peak_memory_parts(self.facts, self.work)

    @property
    def needs(self) -> int:
        return sum(self.parts.values())

    @property
    def totals(self) -> dict[str, int]:
        """Bytes at each moment."""
        return {name: sum(some.values()) for name, some in memory_by_moment(self.facts, self.work).items()}

    @property
    def moment(self) -> str:
        """The fullest one."""
        return max(found := self.totals, key=found.__getitem__)

    def where(self, key: str, value: Any) -> Plan | None:
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
            other = replace(other, facts=replace(self.facts, empty=replace(self.facts.empty, dtype=DTYPES[value])))
        return other


class Saving(NamedTuple):
    """A change of one key. saved: bytes."""

    key: str
    old: Any
    new: Any
    case: Plan
    saved: int

    def told(self, most: int) -> str:
        return f"{self.key} {self.old} -> {self.new} (-{format_bytes(self.saved)}{', fits' if self.case.needs <= most else ''})"


def make_plan(recipe: Recipe) -> Plan:
    """A recipe, its model's facts and its rows, and what a process holds that has imported all and loaded nothing.

    DataError: whatever is wrong with the source or the rows. Where the tokenizer is not here, rows are taken as the longest
    that there may be.
    """
    from ...scoring.models.families import check_head

    facts = read_model_shape(recipe.model)
    check_head(part_name(recipe.task), getattr(recipe.task, "head", "CausalLM"), facts.empty.facts)
    texts = tokenise_datasets(recipe, facts)
    return Plan(recipe, facts, texts, measure_overhead(facts))


def measure_overhead(facts: ModelShape) -> int:
    """Bytes that a process holds that has imported all and loaded nothing; on a GPU that is not there."""
    if facts.empty.device.type == "cuda":
        return 0
    import accelerate  # noqa: F401 - transformers imports it to load
    import torch

    from ...scoring.models.loading import release_memory
    from ...scoring.models.quantised import LinearScales

    LinearScales.has(torch.nn.Identity())  # imports bitsandbytes
    torch.nn.functional.linear(torch.ones(64, 64), torch.ones(64, 64))  # the library of products is loaded once
    release_memory()
    return read_resident_memory()


def predict_parts(case: Plan, texts: Any) -> dict[str, int]:
    """Parts of a run that passed the gate as `case`, now that its rows are tokenised (runs.Texts)."""
    work = compute_workload(case.recipe, case.facts, texts, case.overhead)
    return peak_memory_parts(case.facts, replace(work, cached=case.work.cached))  # what loading made did not lie there


def list_halves(value: int, least: int = 1) -> list[int]:
    """value / 2, value / 4, ... down to the least."""
    found = []
    while value > least:
        value = max(least, value // 2)
        found.append(value)
    return found


def smaller_settings(case: Plan) -> Iterator[tuple[str, Any, list[Any]]]:
    """(key, value, smaller ones) of what decides memory, in the order in which they cost least of a run's result."""
    recipe = case.recipe
    tokens = max(1, longest_forwards(recipe, case.facts, case.texts)[0].tokens)
    yield "train.rows", recipe.train.rows, list_halves(recipe.train.rows, min(tokens, recipe.train.rows))
    if (queries := getattr(recipe.estimator, "queries", 1)) > 1:
        yield "estimator.queries", queries, list_halves(queries)
    yield "train.batch", recipe.train.batch, list_halves(recipe.train.batch)
    if part_name(recipe.space) != "full" and recipe.model.quantization in ("none", "int8"):
        yield "model.quantization", recipe.model.quantization, ["nf4"]
    if recipe.model.quantization == "none" and case.facts.empty.dtype.itemsize == 4:
        yield "model.compute_dtype", recipe.model.compute_dtype, ["bf16"]
    if (rank := getattr(recipe.space, "rank", 1)) > 1:
        yield "space.rank", rank, list_halves(rank)
    if count_rule_slots(recipe.rule):
        yield "rule.name", part_name(recipe.rule), ["sgd"]


def find_savings(case: Plan, most: int) -> list[Saving]:
    """What each key alone can save: its first value with which the run fits, else its smallest. The best first."""
    found, needs = [], case.needs
    for key, old, values in smaller_settings(case):
        last = None
        for value in values:
            other = case.where(key, value)
            if other is None:
                continue
            last = Saving(key, old, value, other, needs - other.needs)
            if other.needs <= most:
                break
        if last is not None and last.saved > 0:
            found.append(last)
    return sorted(found, key=lambda one: (one.case.needs > most, -one.saved))


def fit_plan(case: Plan, most: int) -> tuple[Plan, list[Saving]]:
    """(the recipe with the fewest, mildest changes that fits into so many bytes, or as near as it comes; the changes)."""
    made: list[Saving] = []
    for key, old, values in smaller_settings(case):
        if case.needs <= most or key not in ("train.rows", "estimator.queries", "train.batch"):
            break
        for value in values:
            if (other := case.where(key, value)) is None:
                continue
            if (saved := case.needs - other.needs) > 0:
                made = [one for one in made if one.key != key] + [Saving(key, old, value, other, saved)]
                case = other
            if case.needs <= most:
                break
    return case, made


def format_parts(some: dict[str, int]) -> str:
    """weights 3.9 | logits 4.1 | ..., in GB, or all in MB below one."""
    unit, digits, name = (1e9, 1, "GB") if sum(some.values()) >= 1e9 else (1e6, 0, "MB")
    return " | ".join(f"{part} {count / unit:.{digits}f}" for part, count in some.items() if count) + f" {name}"


def format_refusal(case: Plan, most: int, where: str) -> str:
    """Message 7: what is needed, what there is, the parts, and the one key that saves most."""
    found = find_savings(case, most)
    best = f" Biggest lever: {found[0].told(most)}." if found else ""
    return (
        f"Will not fit: needs {format_bytes(case.needs)}, {format_bytes(most)} free on {where}: "
        f"{format_parts(case.parts)}.{best}"
    )


def check_memory(recipe: Recipe) -> Plan | None:
    """What a run will ask for. DataError, before anything is fetched or loaded, if that cannot fit into the free memory.

    It is refused when MARGIN of what is predicted is more than is free. What the longest batch is asks for the tokenizer,
    which is only needed where the shortest possible one would fit and the longest possible would not. None: something
    else is wrong, for which the run itself has a sentence.
    """
    try:
        facts = read_model_shape(recipe.model)
        case = Plan(recipe, facts, None, measure_overhead(facts))
        least = replace(case.work, step=ForwardSize(1, 1, 1, 1), look=None, trunk=None, points=1, touched=0.0)
    except ZoedgeError:
        return None
    most, where = read_memory_budget(case.work.cuda)
    if case.needs <= most:
        return case
    if REFUSAL_MARGIN * sum(peak_memory_parts(facts, least).values()) <= most:
        try:
            found = replace(case, texts=tokenise_datasets(recipe, facts))
        except ZoedgeError:
            return case
        if found.texts is None or REFUSAL_MARGIN * found.needs <= most:
            return case
        case = found
    raise DataError(format_refusal(case, most, where) + " Nothing was downloaded or changed.")


def tokenise_datasets(recipe: Recipe, facts: ModelShape) -> Any:
    """The recipe's rows (runs.Texts), if the tokenizer is here; None: it is not."""
    from ...scoring.models.loading import load_tokenizer
    from ...scoring.texts import load_datasets

    if facts.folder is None or not (facts.folder / "tokenizer.json").is_file():
        return None
    ahead = describe_space(recipe.space, facts, recipe.model.quantization)[1]
    return load_datasets(recipe, load_tokenizer(facts.folder), min(recipe.data.max_length, facts.context - ahead))
