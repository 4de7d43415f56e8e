"""The sentences that a recipe's mistakes get: what is wrong, and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml
from pydantic import ValidationError

from ..errors import nearest, plain
from .foreign import FOREIGN, WHY
from .strict_yaml import LIMIT, Path_, Writer

ENOUGH = 100  # faults that are looked for: 30,000 in 60 KiB would take 44 s

Fault = Callable[[Path_, str], None]


# -- sentences

UNKNOWN, ABSENT = "extra_forbidden", "missing"

WANTED = {  # pydantic's kinds of error: "VALUE is not ..."
    "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
    "finite_number": "a finite number", "bool_type": "true or false", "string_type": "a text", "list_type": "a list",
    "tuple_type": "a list", "dict_type": "a table of keys", "model_type": "a table of keys",
    "greater_than": "greater than {gt}", "greater_than_equal": "at least {ge}", "less_than": "less than {lt}",
    "less_than_equal": "at most {le}", "literal_error": "{expected}", "value_error": "{error}",
}  # fmt: skip


def dotted(path: Path_) -> str:
    return plain(".".join(map(str, path)))


def shown(value: Any) -> str:
    """A value as the recipe would write it."""
    if isinstance(value, str):
        return f"'{plain(value, 60)}'"
    text: str = yaml.dump(value, Dumper=Writer, default_flow_style=True, width=LIMIT)
    return plain(text.strip().removesuffix("\n..."), 60)


def mistakes(e: ValidationError, value: Any) -> Iterator[tuple[Path_, str]]:
    """(path, sentence) of pydantic's errors; those of the branches of one union as one."""
    groups: dict[Path_, list[Any]] = {}
    for error in e.errors(include_url=False)[: 2 * ENOUGH]:
        place, at = [], value
        for word in error["loc"]:  # also names branches of unions, which are no keys of the user's
            if (isinstance(at, dict) and word in at) or (isinstance(at, list) and isinstance(word, int)):
                at = at[word]  # type: ignore[index]
                place.append(word)
        if error["type"] == ABSENT:
            place.append(error["loc"][-1])
        groups.setdefault(tuple(place), []).append(error)
    for path, errors in groups.items():
        if any(len(other) > len(path) and other[: len(path)] == path for other in groups):
            continue  # the branch that was meant has the answer
        kinds = [error["type"] for error in errors]
        if UNKNOWN in kinds:
            yield path, UNKNOWN
        elif ABSENT in kinds:
            yield path, ABSENT
        else:
            yield path, f"{shown(errors[0]['input'])} {wanted(errors)}"


def wanted(errors: list[Any]) -> str:
    """is not ... or ..., of the branches' errors about one value."""
    value, phrases, choices = errors[0]["input"], [], []
    for error in errors:
        kind, context = error["type"], {k: bound(v) for k, v in error.get("ctx", {}).items()}
        phrases.append(WANTED[kind].format(**context) if kind in WANTED else f"as wanted ({error['msg']})")
        if kind == "literal_error":
            choices += re.findall(r"'([^']*)'", context["expected"])
    text = "is not " + " or ".join(dict.fromkeys(phrases))
    if isinstance(value, str) and (near := nearest(value, choices)):
        return text + near
    if isinstance(value, str) and WANTED["list_type"] in phrases:
        return f"{text} - write [{plain(value)}]"
    if isinstance(value, float) and value.is_integer() and phrases == [WANTED["int_type"]]:
        return f"{text} - write {int(value)}"
    return text


def bound(value: Any) -> str:
    """A limit as people write it: 0 for 0.0, 2**64 for its twenty digits."""
    if isinstance(value, int) and value > 2**32 and value & (value - 1) == 0:
        return f"2**{value.bit_length() - 1}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def unknown(path: Path_, names: dict[str, list[str]]) -> str:
    """An unknown key's sentence: another tool's name is answered with ours, a typo with the nearest."""
    full, key = dotted(path), str(path[-1])
    word = key.lower().replace("-", "_")
    ours = FOREIGN.get(full) or FOREIGN.get(word)
    if ours and ours.partition(":")[0] != full:
        return f"{full}: unknown key - zoedge calls this '{ours}'"
    if word in WHY:
        return f"{full}: unknown key - {WHY[word]}"
    here = names.get(dotted(path[:-1]), [])
    near = nearest(key, here)
    if not near:  # the right word in the wrong place
        homes = [f"{section}.{key}".lstrip(".") for section, keys in names.items() if word in keys and word != "name"]
        near = f" - did you mean '{homes[0]}'?" if len(homes) == 1 else ""
    return f"{full}: unknown key{near or (' - there is: ' + ', '.join(here) if here else '')}"
