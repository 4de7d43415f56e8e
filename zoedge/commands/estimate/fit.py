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
from ...recipe.recipe import Recipe, word_of
from .facts import Facts, facts_of_model
from .machine import free, resident, size
from .memory import moments, parts
from .work import Forward, Work, description, lengths, slots_of, work_of

MARGIN = 0.9  # the prediction is right to 10 %: what may fit is not refused


# -- will it fit?


@dataclass(frozen=True)
class Case:
    """A recipe over a model and its data: all that another setting's memory is computed from."""

    recipe: Recipe
    facts: Facts
    texts: Any
    overhead: int

    @cached_property
    def work(self) -> Work:
        return work_of(self.recipe, self.facts, self.texts, self.overhead)

    @cached_property
    def parts(self) -> dict[str, int]:
        return parts(self.facts, self.work)

    @property
    def needs(self) -> int:
        return sum(self.parts.values())

    @property
    def totals(self) -> dict[str, int]:
        """Bytes at each moment."""
        return {name: sum(some.values()) for name, some in moments(self.facts, self.work).items()}

    @property
    def moment(self) -> str:
        """The fullest one."""
        return max(found := self.totals, key=found.__getitem__)

    def where(self, key: str, value: Any) -> Case | None:
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


class Lever(NamedTuple):
    """A change of one key. saved: bytes."""

    key: str
    old: Any
    new: Any
    case: Case
    saved: int

    def told(self, most: int) -> str:
        return f"{self.key} {self.old} -> {self.new} (-{size(self.saved)}{', fits' if self.case.needs <= most else ''})"


def case_of(recipe: Recipe) -> Case:
    """A recipe, its model's facts and its rows, and what a process holds that has imported all and loaded nothing.

    DataError: whatever is wrong with the source or the rows. Where the tokenizer is not here, rows are taken as the longest
    that there may be.
    """
    from ...scoring.models.families import suits

    facts = facts_of_model(recipe.model)
    suits(word_of(recipe.task), getattr(recipe.task, "head", "CausalLM"), facts.empty.facts)
    texts = tokenised(recipe, facts)
    return Case(recipe, facts, texts, held_already(facts))


def held_already(facts: Facts) -> int:
    """Bytes that a process holds that has imported all and loaded nothing; on a GPU that is not there."""
    if facts.empty.device.type == "cuda":
        return 0
    import accelerate  # noqa: F401 - transformers imports it to load
    import torch

    from ...scoring.models.loading import release
    from ...scoring.models.quantised import Scaled

    Scaled.has(torch.nn.Identity())  # imports bitsandbytes
    torch.nn.functional.linear(torch.ones(64, 64), torch.ones(64, 64))  # the library of products is loaded once
    release()
    return resident()


def predicted(case: Case, texts: Any) -> dict[str, int]:
    """Parts of a run that passed the gate as `case`, now that its rows are tokenised (runs.Texts)."""
    work = work_of(case.recipe, case.facts, texts, case.overhead)
    return parts(case.facts, replace(work, cached=case.work.cached))  # what loading made did not lie there


def halves(value: int, least: int = 1) -> list[int]:
    """value / 2, value / 4, ... down to the least."""
    found = []
    while value > least:
        value = max(least, value // 2)
        found.append(value)
    return found


def choices(case: Case) -> Iterator[tuple[str, Any, list[Any]]]:
    """(key, value, smaller ones) of what decides memory, in the order in which they cost least of a run's result."""
    recipe = case.recipe
    tokens = max(1, lengths(recipe, case.facts, case.texts)[0].tokens)
    yield "train.rows", recipe.train.rows, halves(recipe.train.rows, min(tokens, recipe.train.rows))
    if (queries := getattr(recipe.estimator, "queries", 1)) > 1:
        yield "estimator.queries", queries, halves(queries)
    yield "train.batch", recipe.train.batch, halves(recipe.train.batch)
    if word_of(recipe.space) != "full" and recipe.model.quantization in ("none", "int8"):
        yield "model.quantization", recipe.model.quantization, ["nf4"]
    if recipe.model.quantization == "none" and case.facts.empty.dtype.itemsize == 4:
        yield "model.compute_dtype", recipe.model.compute_dtype, ["bf16"]
    if (rank := getattr(recipe.space, "rank", 1)) > 1:
        yield "space.rank", rank, halves(rank)
    if slots_of(recipe.rule):
        yield "rule.name", word_of(recipe.rule), ["sgd"]


def levers(case: Case, most: int) -> list[Lever]:
    """What each key alone can save: its first value with which the run fits, else its smallest. The best first."""
    found, needs = [], case.needs
    for key, old, values in choices(case):
        last = None
        for value in values:
            other = case.where(key, value)
            if other is None:
                continue
            last = Lever(key, old, value, other, needs - other.needs)
            if other.needs <= most:
                break
        if last is not None and last.saved > 0:
            found.append(last)
    return sorted(found, key=lambda one: (one.case.needs > most, -one.saved))


def fitted(case: Case, most: int) -> tuple[Case, list[Lever]]:
    """(the recipe with the fewest, mildest changes that fits into so many bytes, or as near as it comes; the changes)."""
    made: list[Lever] = []
    for key, old, values in choices(case):
        if case.needs <= most or key not in ("train.rows", "estimator.queries", "train.batch"):
            break
        for value in values:
            if (other := case.where(key, value)) is None:
                continue
            if (saved := case.needs - other.needs) > 0:
                made = [one for one in made if one.key != key] + [Lever(key, old, value, other, saved)]
                case = other
            if case.needs <= most:
                break
    return case, made


def told(some: dict[str, int]) -> str:
    """weights 3.9 | logits 4.1 | ..., in GB, or all in MB below one."""
    unit, digits, name = (1e9, 1, "GB") if sum(some.values()) >= 1e9 else (1e6, 0, "MB")
    return " | ".join(f"{part} {count / unit:.{digits}f}" for part, count in some.items() if count) + f" {name}"


def refusal(case: Case, most: int, where: str) -> str:
    """Message 7: what is needed, what there is, the parts, and the one key that saves most."""
    found = levers(case, most)
    best = f" Biggest lever: {found[0].told(most)}." if found else ""
    return f"Will not fit: needs {size(case.needs)}, {size(most)} free on {where}: {told(case.parts)}.{best}"


def gate(recipe: Recipe) -> Case | None:
    """What a run will ask for. DataError, before anything is fetched or loaded, if that cannot fit into the free memory.

    It is refused when MARGIN of what is predicted is more than is free. What the longest batch is asks for the tokenizer,
    which is only needed where the shortest possible one would fit and the longest possible would not. None: something
    else is wrong, for which the run itself has a sentence.
    """
    try:
        facts = facts_of_model(recipe.model)
        case = Case(recipe, facts, None, held_already(facts))
        least = replace(case.work, step=Forward(1, 1, 1, 1), look=None, trunk=None, points=1, touched=0.0)
    except ZoedgeError:
        return None
    most, where = free(case.work.cuda)
    if case.needs <= most:
        return case
    if MARGIN * sum(parts(facts, least).values()) <= most:
        try:
            found = replace(case, texts=tokenised(recipe, facts))
        except ZoedgeError:
            return case
        if found.texts is None or MARGIN * found.needs <= most:
            return case
        case = found
    raise DataError(refusal(case, most, where) + " Nothing was downloaded or changed.")


def tokenised(recipe: Recipe, facts: Facts) -> Any:
    """The recipe's rows (runs.Texts), if the tokenizer is here; None: it is not."""
    from ...scoring.models.loading import load_tokenizer
    from ...scoring.texts import texts

    if facts.folder is None or not (facts.folder / "tokenizer.json").is_file():
        return None
    ahead = description(recipe.space, facts, recipe.model.quantization)[1]
    return texts(recipe, load_tokenizer(facts.folder), min(recipe.data.max_length, facts.context - ahead))
