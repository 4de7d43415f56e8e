"""This module makes a method's or task's object from a word and a table of options, with a sentence for every mistake."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, Literal, get_args, get_type_hints

import pydantic
from annotated_doc import Doc
from pydantic import TypeAdapter, ValidationError, create_model

from ..core.parts import PART_FOLDERS, load_part
from ..errors import UsageError, ZoedgeError
from .foreign import FOREIGN_KEYS, REASON_BY_KEY
from .overrides import apply_override
from .recipe import part_name
from .sections import DEFAULT_PARTS, Section
from .sentences import UNKNOWN_KEY, FaultReporter, describe_errors, describe_unknown_key, format_path, format_value
from .strict_yaml import KeyPath


def incompatible_parts(parts: dict[str, Any]) -> Iterator[tuple[str, str, str, Any]]:
    """Yield (a part, what it goes only with, the words allowed there, the word that is there) for each pair that is refused."""
    for key in PART_FOLDERS:
        for other, allowed in parts[key].only_with.items() if parts.get(key) is not None else ():
            kind, _, option = other.partition(".")
            if parts.get(kind) is None:
                continue
            options = vars(parts[kind])  # a part without the option has nothing against it
            present = options.get(option, allowed[0]) if option else part_name(parts[kind])
            if present not in allowed:
                yield key, other, " or ".join(map(str, allowed)), present


def parse_part(kind: str, value: Any, fault: FaultReporter, path: KeyPath) -> tuple[Any, dict[str, Any]]:
    """Return the class and the options of a part, written as `word` or `{name: word, ...options}`. No such word: None, {}."""
    options = {"name": value} if isinstance(value, str) else value
    if not isinstance(options, dict) or not isinstance(word := options.get("name", DEFAULT_PARTS[kind]), str):
        fault(
            path,
            f"{format_path(path)}: {format_value(value)} is not a word, or a table such as "
            f"{{name: {DEFAULT_PARTS[kind]}, ...}}",
        )
        return None, {}
    try:
        return load_part(kind, word), {k: v for k, v in options.items() if k != "name"}
    except ZoedgeError as e:
        fault((*path, "name"), str(e))
        for key in options:
            if key in FOREIGN_KEYS or key in REASON_BY_KEY:
                fault((*path, key), describe_unknown_key((*path, key), {}))
        return None, {}


def parse_options(part_class: type[Any], overrides: list[str]) -> Any:
    """Return an object of the frozen dataclass `part_class` from key=value texts. UsageError: it lists every mistake."""
    table: dict[str, Any] = {}
    for override in overrides:
        apply_override(table, {}, override)
    try:
        return part_class(
            **vars(TypeAdapter(build_section(part_class, False)).validate_json(json.dumps(table), strict=True))
        )
    except ValidationError as e:
        names = {"": list(build_section(part_class, False).model_fields)}
        sentences = [
            describe_unknown_key(path, names) if what == UNKNOWN_KEY else f"{format_path(path)}: {what}."
            for path, what in describe_errors(e, table)
        ]
        raise UsageError("\n".join(sentences)) from None


def restore_part(kind: str, table: dict[str, Any]) -> Any:
    """Return the part that `Recipe.resolved` describes by `table`. ValueError or ZoedgeError: it describes none."""
    part_class = load_part(kind, table["name"])
    given = json.dumps({key: value for key, value in table.items() if key != "name"})
    return part_class(**vars(TypeAdapter(build_section(part_class, False)).validate_json(given, strict=True)))


BUILT_SECTIONS: dict[tuple[Any, bool], type[Section]] = {}  # by class and whether 'auto' is allowed


def build_section(part_class: type[Any], auto: bool = True) -> type[Section]:
    """Return the options of a part as a section: pydantic checks dataclasses strictly only if it is given instances.

    Args:
        part_class: a part's dataclass, or another frozen dataclass.
        auto: whether the fields in the class's `auto` may be 'auto', and are, if they are not written: the class's number
            is then where the search begins. Where nobody searches (an optimiser, a log), they are numbers.
    """
    key = (part_class, auto)
    if key not in BUILT_SECTIONS:
        hints = get_type_hints(part_class, include_extras=True)
        columns = {f.name: column(f, hints[f.name], auto and f.name in part_class.auto) for f in fields(part_class)}
        BUILT_SECTIONS[key] = create_model(part_class.__name__, __base__=Section, **columns)
    return BUILT_SECTIONS[key]


def column(option: Field[Any], kind: Any, auto: bool) -> Any:
    """Return a field's type and default as `create_model` takes them; with `auto`, 'auto' is allowed and the default."""
    if auto:
        texts = [item for item in get_args(kind)[1:] if isinstance(item, Doc)]
        union = kind | Literal["auto"]  # whose text would lie hidden in one of its branches
        return (Annotated[union, *texts] if texts else union), "auto"
    if option.default_factory is not MISSING:
        return kind, pydantic.Field(default_factory=option.default_factory)
    return kind, ... if option.default is MISSING else option.default
