"""This module writes the recipe as a JSON schema (draft 2020-12), for editors, and one field of it in words, for people.

A field's annotation holds its type, its bounds and its text (`Doc`); its default is the field's own.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from annotated_doc import Doc

from ..core.parts import PART_FOLDERS, list_words, load_part
from ..errors import UsageError, make_printable, suggest_nearest
from .parts import build_section
from .sections import DEFAULT_PARTS, REQUIRED_KEYS, SECTIONS, Curvature, Section, Split, WatchdogOptions
from .sentences import format_value

# written by `make docs` and read for the tab key, because the classes of the parts import torch
KEYS_FILE = Path(__file__).with_name("keys.json")
SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"
TOP_LEVEL_KEYS: dict[str, dict[str, Any]] = {
    "version": {"const": 1, "description": "The recipe's format."},
    "name": {
        "type": "string",
        "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        "default": "the file's name",
        "description": "The run's name, and its folder's below output.dir.",
    },
    "seed": {
        "type": "integer",
        "minimum": 0,
        "maximum": 2**64 - 1,
        "default": 0,
        "description": "What directions, initial values and the order of rows are drawn from.",
    },
}
PART_TITLES = {
    "noise": "Directions",
    "estimator": "Losses to weights",
    "rule": "Weights to an update",
    "space": "What is trained",
    "task": "What a row is, and what is scored",
}


def read_descriptions(section: type[Section]) -> dict[str, str]:
    """Return the text of each field of a section, or of a part's options: the `Doc` in its annotation."""
    return {
        name: " ".join(item.documentation for item in field.metadata if isinstance(item, Doc))
        for name, field in section.model_fields.items()
    }


def read_summary(described: type[Any]) -> str:
    """Return what a part does: the first paragraph of its file, or the first sentence of its section."""
    doc = (described.__doc__ if issubclass(described, Section) else inspect.getmodule(described).__doc__) or ""
    text = " ".join(doc.split("\n\n")[0].split())
    return text.partition(". ")[0].removesuffix(".") + "." if issubclass(described, Section) else text


def inline_references(value: Any, kinds: dict[str, Any]) -> Any:
    """Return a schema with its references replaced by what they name, and without pydantic's titles."""
    if isinstance(value, list):
        return [inline_references(item, kinds) for item in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return {**inline_references(kinds[name], kinds), **{k: v for k, v in value.items() if k != "$ref"}}
    return {k: inline_references(v, kinds) for k, v in value.items() if not (k == "title" and isinstance(v, str))}


NESTED_SECTIONS: dict[str, type[Section]] = {"Split": Split, "WatchdogOptions": WatchdogOptions, "Curvature": Curvature}


def section_schema(described: type[Any], section: type[Section]) -> dict[str, Any]:
    """Return the schema of the fields of `described`; `section` is that class itself, or what `build_section` made of it."""
    raw = section.model_json_schema()
    kinds = {name: section_schema(NESTED_SECTIONS[name], NESTED_SECTIONS[name]) for name in raw.get("$defs", {})}
    schema = inline_references({k: v for k, v in raw.items() if k != "$defs"}, kinds)
    for name, text in read_descriptions(section).items():
        schema["properties"][name]["description"] = text
    schema["description"] = read_summary(described)
    if described is Split:
        schema["properties"]["split"] = {
            "anyOf": [
                {"type": "integer", "minimum": 1},
                {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
            ],
            "description": schema["properties"]["split"]["description"],
        }
    return schema


def part_schema(kind: str) -> dict[str, Any]:
    """Return the schema of a part: it is a word, or a table with its name and options."""
    known = list_words(PART_FOLDERS[kind])
    tables = []
    for word in known:
        part_class = load_part(kind, word)
        one = section_schema(part_class, build_section(part_class))
        for name, inner in part_class.nested.items():
            options = {
                w: {
                    "anyOf": [{"type": "null"}, section_schema(load_part(inner, w), build_section(load_part(inner, w)))]
                }
                for w in list_words(PART_FOLDERS[inner])
            }
            one["properties"][name] |= {"properties": options, "additionalProperties": False}
        one["properties"] = {
            "name": {"const": word, "description": read_summary(part_class)},
            **one.get("properties", {}),
        }
        one["required"] = [*one.get("required", []), *([] if word == DEFAULT_PARTS[kind] else ["name"])]
        tables.append(one)
    return {
        "description": f"{PART_TITLES[kind]}: {', '.join(known)}.",
        "default": DEFAULT_PARTS[kind],
        "anyOf": [{"type": "string", "enum": list(known)}, *tables],
    }


def recipe_schema() -> dict[str, Any]:
    """Return the schema of the whole recipe. It loads every part, and with them torch."""
    properties: dict[str, Any] = {**TOP_LEVEL_KEYS}
    properties |= {key: section_schema(section, section) for key, section in SECTIONS.items()}
    properties |= {key: part_schema(key) for key in PART_FOLDERS}
    for key, value in properties.items():
        if key not in REQUIRED_KEYS:  # null is as if it was not written
            properties[key] = {"anyOf": [value, {"type": "null"}], "description": value["description"]}
            if "default" in value:
                properties[key]["default"] = value["default"]
    return {
        "$schema": SCHEMA_DIALECT,
        "title": "zoedge recipe",
        "type": "object",
        "additionalProperties": False,
        "required": list(REQUIRED_KEYS),
        "properties": properties,
    }


# -- one field in words


def list_fields() -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Return all keys of a recipe, dotted, each with a list of (the part it is an option of, or ''; its schema)."""
    known: dict[str, list[tuple[str, dict[str, Any]]]] = {key: [("", value)] for key, value in TOP_LEVEL_KEYS.items()}

    def add(before: str, word: str, schema: dict[str, Any]) -> None:
        for name, value in schema.get("properties", {}).items():
            if name != "name" or word == "":
                path = f"{before}.{name}"
                known.setdefault(path, []).append((word, value))
                for inner in value.get("anyOf", []):
                    if "properties" in inner:
                        add(path, word, inner)

    for key, section in SECTIONS.items():
        known[key] = [("", one := section_schema(section, section))]
        add(key, "", one)
    for kind in PART_FOLDERS:
        known[kind] = [("", part_schema(kind))]
        for word in list_words(PART_FOLDERS[kind]):
            add(kind, word, section_schema(load_part(kind, word), build_section(load_part(kind, word))))
    return known


def format_keys() -> str:
    """Return what KEYS_FILE should hold: a JSON list of the dotted keys that key=value may set. Loads every part."""
    keys = {"name", "seed", *PART_FOLDERS}
    keys |= {f"{key}.{name}" for key, section in SECTIONS.items() for name in section.model_fields}
    for kind, folder in PART_FOLDERS.items():
        keys |= {f"{kind}.{field.name}" for word in list_words(folder) for field in fields(load_part(kind, word))}
    return json.dumps(sorted(keys), indent=0) + "\n"


def explain_field(path: str) -> str:
    """Return a field's type, bounds, default and description as text. UsageError: there is no such field."""
    known = list_fields()
    if path.endswith(".name") and (kind := path.removesuffix(".name")) in PART_FOLDERS:
        return f"{path}: {' | '.join(list_words(PART_FOLDERS[kind]))}; default: {DEFAULT_PARTS[kind]}\n  {PART_TITLES[kind]}."
    if path not in known:
        tails = {p.rpartition(".")[2]: p for p in known}
        near = suggest_nearest(path, known) or (f" - did you mean '{tails[path]}'?" if path in tails else "")
        siblings = [p for p in known if p.rpartition(".")[0] == path.rpartition(".")[0]]
        raise UsageError(
            f"--field: no '{make_printable(path)}' in a recipe{near or '. There is: ' + ', '.join(siblings)}"
        )
    groups: dict[str, list[str]] = {}
    for word, value in known[path]:
        text = format_type(value) + format_default(value)
        text += f"\n  {value['description']}" if value.get("description") else ""
        groups.setdefault(text, []).append(word)
    lines = []
    for text, owners in groups.items():
        kind = path.partition(".")[0]
        every = owners == [""] or len(owners) == len(list_words(PART_FOLDERS[kind]))
        listing = ", ".join(owners)
        lines.append(f"{path}{'' if every else f' ({kind}: {listing})'}: {text}")
    inner = [p for p in known if p.startswith(f"{path}.") and "." not in p[len(path) + 1 :]]
    return "\n".join([*lines, *([f"  keys: {', '.join(inner)}"] if inner else [])])


def format_default(value: dict[str, Any]) -> str:
    """Return the words about a default, or that the field is required."""
    if "default" not in value:
        return "; required" if value.get("type") != "object" and "anyOf" not in value else ""
    return "; default: " + (
        format_value(value["default"])
        if value["default"] not in (None, "the file's name")
        else str(value["default"] or "none")
    )


def format_type(value: dict[str, Any]) -> str:
    """Return a schema's type and bounds in words."""
    if "anyOf" in value:
        kinds = [format_type(one) for one in value["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "const" in value:
        return str(value["const"])
    if "enum" in value:
        return " | ".join(map(str, value["enum"]))
    kind = {
        "integer": "a whole number",
        "number": "a number",
        "string": "a text",
        "boolean": "true or false",
        "array": "a list",
        "object": "a table of keys",
    }[value.get("type", "object")]
    bounds = {"minimum": "at least", "exclusiveMinimum": "over", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [
        f"{text} {value[key]:g}" if value[key] < 2**31 else f"{text} 2**{value[key].bit_length()}"
        for key, text in bounds.items()
        if key in value
    ]
    return kind + (f", {' and '.join(limits)}" if limits else "")
