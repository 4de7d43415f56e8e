"""`Recipe` is a checked recipe: its sections and parts, as the objects that use them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, is_dataclass, replace
from typing import Any, NamedTuple

import yaml

from ..core.types import AbstractEstimator, AbstractNoise, AbstractRule, AbstractSpace, AbstractTask
from .sections import Cache, Data, Eval, LogOptions, Model, Output, Section, Train, without_values
from .strict_yaml import StrictDumper

TRUNK_KEY = "model.trunk_dtype"  # the choice of a type is a number of the run, as those of the parts are
WATCHDOG_KEY = "train.watchdog"  # in `Recipe.auto` if `derive` switched the watchdog on

# Keys that were added after the first logs. They are left out at their default, so that the old recipes keep their digests.
ADDED_LATER: dict[str, Any] = {
    "watchdog": None,
    "rise": None,
    "trust": None,
    "format": "auto",
    "report": False,
    "trackers": [],
    "timeout": None,
    "max_memory": None,
    "closed_form": True,
    "drift": None,
    "trunk_dtype": None,
    "on_untrainable": "stop",
}
SECTIONS_ADDED_LATER: tuple[Section, ...] = (Cache(),)  # likewise
PART_OPTIONS_ADDED_LATER: dict[str, Any] = {"start": "zero"}  # likewise, of noise, estimator, rule, space and task


class Derived(NamedTuple):
    """A setting that the recipe leaves open and that its other settings decide."""

    path: str  # dotted, such as 'rule.schedule'
    value: Any
    reason: str


@dataclass(frozen=True)
class Recipe:
    """A checked recipe: sections and parts as the objects that use them. `seed` is 64 bits; 0 is a seed."""

    name: str
    seed: int
    model: Model
    data: Data
    task: AbstractTask
    space: AbstractSpace
    noise: AbstractNoise
    estimator: AbstractEstimator
    rule: AbstractRule
    train: Train
    eval: Eval
    log: LogOptions
    output: Output
    cache: Cache
    # dotted keys such as 'rule.lr', whose values are chosen before the run begins; until then they hold the class's number.
    # The set is not compared, because `resolved` writes a derived watchdog out, and `check` reads it back as a written one
    auto: frozenset[str] = field(default=frozenset(), compare=False)
    derived: tuple[Derived, ...] = field(default=(), compare=False)  # what the check filled in, for --dry-run

    def resolved(self) -> dict[str, Any]:
        """Return the table of all values, defaults included, that `check` reads back to the same recipe."""
        table: dict[str, Any] = {"version": 1, "name": self.name, "seed": self.seed}
        for key, value in vars(self).items():
            if isinstance(value, Section) and value not in SECTIONS_ADDED_LATER:
                table[key] = without_values(value.model_dump(), ADDED_LATER)
            elif is_dataclass(value) and not isinstance(value, type):
                table[key] = describe_part(value)
        for section, key in (path.split(".") for path in self.auto - {WATCHDOG_KEY}):
            table[section][key] = "auto"
        return table

    def with_numbers(self, numbers: dict[str, Any]) -> Recipe:
        """Return the recipe with numbers for some of its `auto` keys, such as {'rule.lr': 1e-3}; others stay."""
        changed: dict[str, Any] = {}
        for path, value in numbers.items():
            section, key = path.split(".")
            old = changed.get(section, vars(self)[section])
            new = old.model_copy(update={key: value}) if isinstance(old, Section) else replace(old, **{key: value})
            changed[section] = new
        return replace(self, **changed, auto=self.auto - numbers.keys())

    def semantic(self) -> dict[str, Any]:
        """Return the part of the recipe that decides the numbers of a run.

        It leaves out names, folders, how often a run is looked at, and where files lie (their contents are digested).
        """
        table = self.resolved()
        for key in ("name", "output", "eval", "cache"):
            table.pop(key, None)
        for section, keys in {
            "model": ("source", "revision", "device", "threads", "max_memory"),
            "data": tuple(Data.model_fields),
            "log": ("sync_every", "trackers"),
            "train": ("timeout",),
        }.items():
            for key in keys:
                table[section].pop(key, None)
        return table


def part_name(value: Any) -> str:
    """Return the recipe's word for a part, which is the name of its file."""
    return type(value).__module__.rpartition(".")[2]


def describe_part(value: Any) -> dict[str, Any]:
    """Return the table of a part: its word and its options, from which `check` makes the same part."""
    return {"name": part_name(value), **without_values(asdict(value), PART_OPTIONS_ADDED_LATER)}


def dump_recipe(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML that `read_recipe` reads back to the same recipe."""
    return yaml.dump(recipe.resolved(), Dumper=StrictDumper, sort_keys=False, allow_unicode=True, width=120)


def dump_derived(recipe: Recipe) -> str:
    """Return what the check filled in, with the reasons, as comment lines of YAML. Nothing was filled in: ''."""
    if not recipe.derived:
        return ""
    lines = ["# What the recipe leaves open, and its other settings decide:"]
    for path, value, reason in recipe.derived:
        text = yaml.dump(value, Dumper=StrictDumper, default_flow_style=True, width=120).strip().removesuffix("\n...")
        lines.append(f"# {path}: {text} - {reason}.")
    return "\n".join(lines) + "\n"
