"""The recipe as a JSON schema (draft 2020-12) for editors, and one field of it in words; from the classes alone.

A field's description stands in its class's docstring, as "field: what it is." or "one, another: what they are."; its type,
bounds and default are the field's own.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from ..core.parts import FOLDERS, part, words
from ..errors import UsageError, nearest, plain
from .parts import schema
from .sections import DEFAULTS, REQUIRED, SECTIONS, Curvature, Section, Split, Watchdog
from .sentences import shown

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TOP = {
    "version": {"const": 1, "description": "The recipe's format."},
    "name": {
        "type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", "default": "the file's name",
        "description": "The run's name, and its folder's below output.dir.",
    },
    "seed": {
        "type": "integer", "minimum": 0, "maximum": 2**64 - 1, "default": 0,
        "description": "What directions, initial values and the order of rows are drawn from.",
    },
}  # fmt: skip
SHORT = {"noise": "Directions", "estimator": "Losses to weights", "rule": "Weights to an update", "space": "What is trained",
         "task": "What a row is, and what is scored"}  # fmt: skip


def told(made: type[Any], names: list[str]) -> dict[str, str]:
    """What docstrings say of each field: those of a class before its bases'."""
    found: dict[str, str] = {}
    for one in made.__mro__:
        text = " ".join((one.__dict__.get("__doc__") or "").split())
        heads = list(re.finditer(r"(?:^|(?<=[.;!?)] ))((?:`?\w+`?, )*`?\w+`?): ", text))
        heads = [head for head in heads if all(word in names for word in re.findall(r"\w+", head[1]))]
        for head, after in zip(heads, [*heads[1:], None]):
            what = text[head.end() : after.start() if after else len(text)].strip()
            for word in re.findall(r"\w+", head[1]):
                found.setdefault(word, what)
    return found


def summary(made: type[Any]) -> str:
    """What a part does: its file's first paragraph, or its section's first sentence."""
    doc = (made.__doc__ if issubclass(made, Section) else inspect.getmodule(made).__doc__) or ""  # type: ignore[union-attr]
    text = " ".join(doc.split("\n\n")[0].split())
    return re.split(r"(?<=\.) ", text)[0] if issubclass(made, Section) else text


def inlined(value: Any, kinds: dict[str, Any]) -> Any:
    """A schema with its references replaced by what they name, and without pydantic's titles."""
    if isinstance(value, list):
        return [inlined(item, kinds) for item in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return {**inlined(kinds[name], kinds), **{k: v for k, v in value.items() if k != "$ref"}}
    return {k: inlined(v, kinds) for k, v in value.items() if not (k == "title" and isinstance(v, str))}


NESTED = {"Split": Split, "Watchdog": Watchdog, "Curvature": Curvature}


def table(made: type[Any], section: type[Section]) -> dict[str, Any]:
    """The schema of a class's fields."""
    raw = section.model_json_schema()
    kinds = {name: table(NESTED[name], NESTED[name]) for name in raw.get("$defs", {})}
    found = inlined({k: v for k, v in raw.items() if k != "$defs"}, kinds)
    texts = told(made, list(found.get("properties", {})))
    for name, field in found.get("properties", {}).items():
        field["description"] = texts.get(name, "")
    found["description"] = summary(made)
    if made is Split:
        found["properties"]["split"] = {
            "anyOf": [{"type": "integer", "minimum": 1}, {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}],
            "description": found["properties"]["split"]["description"],
        }  # fmt: skip
    return found


def choice(kind: str) -> dict[str, Any]:
    """A part: a word, or a table with its name and options."""
    known = words(FOLDERS[kind])
    tables = []
    for word in known:
        made = part(kind, word)
        one = table(made, schema(made))
        for name, inner in getattr(made, "nested", {}).items():
            options = {
                w: {"anyOf": [{"type": "null"}, table(part(inner, w), schema(part(inner, w)))]}
                for w in words(FOLDERS[inner])
            }
            one["properties"][name] |= {"properties": options, "additionalProperties": False}
        one["properties"] = {"name": {"const": word, "description": summary(made)}, **one.get("properties", {})}
        one["required"] = [*one.get("required", []), *([] if word == DEFAULTS[kind] else ["name"])]
        tables.append(one)
    return {
        "description": f"{SHORT[kind]}: {', '.join(known)}.", "default": DEFAULTS[kind],
        "anyOf": [{"type": "string", "enum": list(known)}, *tables],
    }  # fmt: skip


def document() -> dict[str, Any]:
    """The whole recipe. Loads every part, and with them torch."""
    properties: dict[str, Any] = {**TOP}
    properties |= {key: table(section, section) for key, section in SECTIONS.items()}
    properties |= {key: choice(key) for key in FOLDERS}
    for key, value in properties.items():
        if key not in REQUIRED:  # null is as if it was not written
            properties[key] = {"anyOf": [value, {"type": "null"}], "description": value["description"]}
            if "default" in value:
                properties[key]["default"] = value["default"]
    return {
        "$schema": DIALECT, "title": "zoedge recipe", "type": "object", "additionalProperties": False,
        "required": list(REQUIRED), "properties": properties,
    }  # fmt: skip


# -- one field in words


def paths() -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Every key of a recipe, dotted -> [(the part it is an option of, or '', its schema)]."""
    found: dict[str, list[tuple[str, dict[str, Any]]]] = {key: [("", value)] for key, value in TOP.items()}

    def add(before: str, word: str, one: dict[str, Any]) -> None:
        for name, value in one.get("properties", {}).items():
            if name != "name" or word == "":
                here = f"{before}.{name}"
                found.setdefault(here, []).append((word, value))
                for inner in value.get("anyOf", []):
                    if "properties" in inner:
                        add(here, word, inner)

    for key, section in SECTIONS.items():
        found[key] = [("", one := table(section, section))]
        add(key, "", one)
    for kind in FOLDERS:
        found[kind] = [("", choice(kind))]
        for word in words(FOLDERS[kind]):
            add(kind, word, table(part(kind, word), schema(part(kind, word))))
    return found


def explained(path: str) -> str:
    """A field's type, bounds, default and description as text. UsageError: no such field; the nearest is named."""
    known = paths()
    if path not in known:
        tails = {p.rpartition(".")[2]: p for p in known}
        near = nearest(path, known) or (f" - did you mean '{tails[path]}'?" if path in tails else "")
        there = [p for p in known if p.rpartition(".")[0] == path.rpartition(".")[0]]
        raise UsageError(f"--field: no '{plain(path)}' in a recipe{near or '. There is: ' + ', '.join(there)}")
    groups: dict[str, list[str]] = {}
    for word, value in known[path]:
        text = kind_of(value) + default_of(value)
        text += f"\n  {value['description']}" if value.get("description") else ""
        groups.setdefault(text, []).append(word)
    lines = []
    for text, owners in groups.items():
        kind = path.partition(".")[0]
        every = owners == [""] or len(owners) == len(words(FOLDERS[kind]))
        listing = ", ".join(owners)
        lines.append(f"{path}{'' if every else f' ({kind}: {listing})'}: {text}")
    inner = [p for p in known if p.startswith(f"{path}.") and "." not in p[len(path) + 1 :]]
    return "\n".join([*lines, *([f"  keys: {', '.join(inner)}"] if inner else [])])


def default_of(value: dict[str, Any]) -> str:
    if "default" not in value:
        return "; required" if value.get("type") != "object" and "anyOf" not in value else ""
    return "; default: " + (shown(value["default"]) if value["default"] not in (None, "the file's name") else
                            str(value["default"] or "none"))  # fmt: skip


def kind_of(value: dict[str, Any]) -> str:
    """A schema's type and bounds in words."""
    if "anyOf" in value:
        kinds = [kind_of(one) for one in value["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "const" in value:
        return str(value["const"])
    if "enum" in value:
        return " | ".join(map(str, value["enum"]))
    kind = {
        "integer": "a whole number", "number": "a number", "string": "a text", "boolean": "true or false", "array": "a list",
        "object": "a table of keys",
    }[value.get("type", "object")]  # fmt: skip
    bounds = {"minimum": "at least", "exclusiveMinimum": "over", "maximum": "at most", "exclusiveMaximum": "below"}
    limits = [
        f"{text} {value[key]:g}" if value[key] < 2**31 else f"{text} 2**{value[key].bit_length()}"
        for key, text in bounds.items()
        if key in value
    ]
    return kind + (f", {' and '.join(limits)}" if limits else "")
