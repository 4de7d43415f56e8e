"""This module checks a recipe: it reports every mistake at once, with file:line:column and the way out.

A section's keys are the fields of the class that uses it, and each default is written there alone. `model`, `data`,
`train`, `eval`, `log` and `output` are here; noise, estimator, rule, space and task are the parts' own classes.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..core.parts import PART_FOLDERS
from ..errors import UsageError, ZoedgeError
from .derive import derive
from .faults import Faults
from .pair_rules import PAIR_RULES
from .parts import build_section, parse_part
from .recipe import Recipe
from .sections import DEFAULT_PARTS, REQUIRED_KEYS, SECTIONS, Curvature, RunName, Section, Seed, Split, WatchdogOptions
from .sentences import MISSING_KEY, UNKNOWN_KEY, describe_errors, describe_unknown_key, format_path, format_value
from .strict_yaml import MAX_DEPTH, KeyPath, Positions

NESTED_SECTIONS: dict[str, type[Section]] = {
    "eval.curvature": Curvature,
    "train.watchdog": WatchdogOptions,
    "data.valid": Split,
    "data.test": Split,
}


@dataclass
class Draft:
    """A recipe while it is checked: what is written, what has been made of it, and the mistakes so far."""

    given: dict[str, Any]  # the table as written, without the keys that are null
    faults: Faults
    classes: dict[str, Any] = field(default_factory=dict)  # of each part; None: its word is wrong
    options: dict[str, dict[str, Any]] = field(default_factory=dict)  # of each part, as written
    keys: dict[str, list[str]] = field(default_factory=dict)  # the keys that each table may have, by its dotted path
    parts: dict[str, Any] = field(default_factory=dict)  # name, seed, sections and parts; None: it has a mistake
    auto: set[str] = field(default_factory=set)  # dotted keys whose value is 'auto'


def check(table: dict[str, Any], marks: Positions, where: str, wrong: Collection[str] = ()) -> Recipe:
    """Return the recipe of a table.

    Args:
        table: the recipe as YAML or a log's header holds it.
        marks: the line and column of each key of the table; empty if it does not come from a file.
        where: the file's or log's name, with which each sentence begins.
        wrong: the sentences of mistakes that were met before, such as those of `key=value` texts.

    Raises: UsageError: it lists every mistake, those in `wrong` too, a sentence each.
    """
    if not isinstance(table, dict) or is_malformed(table):  # a log's recipe has not come through read_yaml
        raise UsageError(f"{where}: not a table of keys and values, at most {MAX_DEPTH} deep, without NUL characters.")
    draft = Draft({key: value for key, value in table.items() if value is not None}, Faults(where, marks, wrong))
    find_classes(draft)
    check_top_level(draft, table)
    build_sections(draft)
    build_parts(draft)
    derived = derive(draft.parts, draft.auto, draft.given, draft.options["rule"], draft.options["estimator"])
    for rule in PAIR_RULES:
        for path, what in rule(draft.parts):
            draft.faults.report(path, what)
    draft.faults.raise_all()
    return Recipe(**draft.parts, auto=frozenset(draft.auto), derived=tuple(derived))


# -- parse


def find_classes(draft: Draft) -> None:
    """Find the class that each part's word names, and list the keys that each table may have."""
    for kind in PART_FOLDERS:
        value = draft.given.get(kind, DEFAULT_PARTS[kind])
        draft.classes[kind], draft.options[kind] = parse_part(kind, value, draft.faults.report, (kind,))
    draft.keys |= {key: list(section.model_fields) for key, section in SECTIONS.items()}
    for kind, part_class in draft.classes.items():
        draft.keys[kind] = ["name", *(build_section(part_class).model_fields if part_class else ())]
    draft.keys |= {path: list(section.model_fields) for path, section in NESTED_SECTIONS.items()}
    draft.keys[""] = ["version", "name", "seed", *SECTIONS, *PART_FOLDERS]


def check_top_level(draft: Draft, table: dict[str, Any]) -> None:
    """Report unknown and missing keys of the outermost table, and a version that is not 1."""
    for key in table:
        if key not in draft.keys[""]:
            draft.faults.report((key,), describe_unknown_key((key,), draft.keys))
    for key, example in REQUIRED_KEYS.items():
        if key not in draft.given:
            draft.faults.report((), f"{key}: missing - write '{example}'")
    version = draft.given.get("version", 1)
    if version != 1 or type(version) is not int:
        what = f"version: {format_value(version)} is not read by this zoedge - write 'version: 1'"
        draft.faults.report(("version",), what)


def validate(draft: Draft, kind: Any, value: Any, path: KeyPath) -> Any:
    """Return a value as pydantic reads it for a type. None: it is wrong, and its mistakes are reported."""
    try:  # as JSON, whose lists pydantic also takes for tuples
        return TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
    except ValidationError as e:
        for inner_path, what in describe_errors(e, value):
            place = (*path, *inner_path)
            if what == UNKNOWN_KEY:
                draft.faults.report(place, describe_unknown_key(place, draft.keys))
            elif what == MISSING_KEY and len(place) == 2 and path[0] in REQUIRED_KEYS:
                draft.faults.report(place, f"{format_path(place)}: missing - such as '{REQUIRED_KEYS[path[0]]}'")
            else:
                draft.faults.report(place, f"{format_path(place)}: {what}")
    return None


# -- build


def build_sections(draft: Draft) -> None:
    """Build the name, the seed and the sections; a missing section that is required is left out."""
    draft.parts["name"] = validate(draft, RunName, draft.given.get("name", "run"), ("name",))
    draft.parts["seed"] = validate(draft, Seed, draft.given.get("seed", 0), ("seed",))
    for key, section in SECTIONS.items():
        if key in draft.given or key not in REQUIRED_KEYS:
            draft.parts[key] = validate(draft, section, draft.given.get(key, {}), (key,))


def build_parts(draft: Draft) -> None:
    """Build the parts of their classes and options."""
    for kind, part_class in draft.classes.items():
        draft.parts[kind] = build_part(draft, part_class, draft.options[kind], (kind,))


def build_part(draft: Draft, part_class: Any, options: dict[str, Any], path: KeyPath) -> Any:
    """Return the part of a class and its options, after the parts within it. None: it has mistakes."""
    if part_class is None or (checked := validate(draft, build_section(part_class), options, path)) is None:
        return None
    values = dict(vars(checked))
    for option, kind in part_class.nested.items():
        values[option] = build_nested(draft, kind, values[option], (*path, option))
        if None in values[option].values():
            return None
    defaults = {option.name: option.default for option in fields(part_class)}
    for option in part_class.auto:
        if values[option] == "auto":
            values[option] = defaults[option]  # the number where a search begins
            draft.auto.add(format_path((*path, option)))
    try:
        return part_class(**values)
    except (ValueError, ZoedgeError) as e:
        draft.faults.report((*path, *str(e).partition(":")[0].split(".")), f"{format_path(path)}.{e}")
        return None


def build_nested(draft: Draft, kind: str, words: dict[str, Any], path: KeyPath) -> dict[str, Any]:
    """Return the parts within a part, by their words; those with mistakes are None."""
    parts: dict[str, Any] = {}
    for word, options in words.items():
        place = (*path, word)
        part_class, _ = parse_part(kind, word, draft.faults.report, place)
        draft.keys[format_path(place)] = list(build_section(part_class).model_fields) if part_class else []
        parts[word] = build_part(draft, part_class, {} if options is None else options, place)
    return parts


def is_malformed(value: Any, left: int = MAX_DEPTH) -> bool:
    """Return whether the value is nested too deep, or a text in it has a NUL, which no name of a file can hold."""
    if isinstance(value, str):
        return "\0" in value
    inner = (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left < 0 or any(is_malformed(v, left - 1) for v in inner)
