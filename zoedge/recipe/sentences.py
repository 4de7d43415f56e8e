"""This module writes the sentences about a recipe's mistakes: what is wrong, and what to write instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml
from pydantic import ValidationError

from ..errors import make_printable, suggest_nearest
from .foreign import FOREIGN_KEYS, REASON_BY_KEY
from .strict_yaml import MAX_FILE_BYTES, KeyPath, StrictDumper

MAX_FAULTS = 100  # a check stops after so many mistakes: 30,000 in 60 KiB would take 44 s

FaultReporter = Callable[[KeyPath, str], None]


# -- sentences

# pydantic's words for two kinds of error
UNKNOWN_KEY = "extra_forbidden"
MISSING_KEY = "missing"

ERROR_PHRASES = {  # pydantic's kinds of error: "VALUE is not ..."
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a table of keys",
    "model_type": "a table of keys",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "value_error": "{error}",
}


SPELLINGS = {  # other tools' words for a value, and ours
    "float32": "fp32",
    "float": "fp32",
    "float16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
    "4bit": "nf4",
    "4-bit": "nf4",
    "int4": "nf4",
    "q4": "nf4",
    "8bit": "int8",
    "8-bit": "int8",
    "q8": "int8",
    "16bit": "none",
    "all-linear": "all",
    "all_linear": "all",
    "all-linear-layers": "all",
    "gpu": "cuda",
}


def format_path(path: KeyPath) -> str:
    """Return a key path as a recipe writes it, with dots."""
    return make_printable(".".join(map(str, path)))


def format_value(value: Any) -> str:
    """Return a value as a recipe would write it, in at most 60 characters."""
    if isinstance(value, str):
        return f"'{make_printable(value, 60)}'"
    text: str = yaml.dump(value, Dumper=StrictDumper, default_flow_style=True, width=MAX_FILE_BYTES)
    return make_printable(text.strip().removesuffix("\n..."), 60)


def describe_errors(e: ValidationError, value: Any) -> Iterator[tuple[KeyPath, str]]:
    """Yield a path and a sentence for each of pydantic's errors; the errors of a union's branches give one sentence."""
    groups: dict[KeyPath, list[Any]] = {}
    for error in e.errors(include_url=False)[: 2 * MAX_FAULTS]:
        place, at = [], value
        for word in error["loc"]:  # also names branches of unions, which are no keys of the user's
            if (isinstance(at, dict) and word in at) or (isinstance(at, list) and isinstance(word, int)):
                at = at[word]  # type: ignore[index]
                place.append(word)
        if error["type"] == MISSING_KEY:
            place.append(error["loc"][-1])
        groups.setdefault(tuple(place), []).append(error)
    for path, errors in groups.items():
        if any(len(other) > len(path) and other[: len(path)] == path for other in groups):
            continue  # the branch that was meant has the answer
        kinds = [error["type"] for error in errors]
        if UNKNOWN_KEY in kinds:
            yield path, UNKNOWN_KEY
        elif MISSING_KEY in kinds:
            yield path, MISSING_KEY
        else:
            yield path, f"{format_value(errors[0]['input'])} {describe_expected(errors)}{suggest_value(path, errors)}"


def describe_expected(errors: list[Any]) -> str:
    """Return 'is not ... or ...' for the errors of a union's branches about one value."""
    value, phrases, choices = errors[0]["input"], [], []
    for error in errors:
        kind, context = error["type"], {k: format_bound(v) for k, v in error.get("ctx", {}).items()}
        phrases.append(
            ERROR_PHRASES[kind].format(**context) if kind in ERROR_PHRASES else f"as wanted ({error['msg']})"
        )
        if kind == "literal_error":
            choices += re.findall(r"'([^']*)'", context["expected"])
    text = "is not " + " or ".join(dict.fromkeys(phrases))
    if isinstance(value, str) and SPELLINGS.get(value.lower()) in choices:
        return f"{text} - write {SPELLINGS[value.lower()]}"
    if isinstance(value, str) and (near := suggest_nearest(value, choices)):
        return text + near
    if isinstance(value, str) and ERROR_PHRASES["list_type"] in phrases:
        return f"{text} - write [{make_printable(value)}]"
    if isinstance(value, float) and value.is_integer() and phrases == [ERROR_PHRASES["int_type"]]:
        return f"{text} - write {int(value)}"
    return text


def suggest_value(path: KeyPath, errors: list[Any]) -> str:
    """Return " - write ..." with the right spelling of a value that is nearly right, from its errors; "": none is known."""
    value, kinds = errors[0]["input"], {error["type"] for error in errors}
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and path[-1:] in (("valid",), ("test",)) and "string_type" in kinds:
        return f" - write {{split: {format_value(value)}}}"
    if kinds == {"string_type"} and (is_number or isinstance(value, bool)):
        return f' - write "{format_value(value)}" in quotes (in a shell: \'"{format_value(value)}"\')'
    if isinstance(value, str) and kinds & {"int_type", "float_type"}:
        digits = value.replace("_", "").replace(",", "").replace(" ", "")
        if digits != value and re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", digits):
            return f" - write {digits}"
    return ""


def format_bound(value: Any) -> str:
    """Return a limit as people write it: 0 for 0.0, 2**64 for its twenty digits."""
    if isinstance(value, int) and value > 2**32 and value & (value - 1) == 0:
        return f"2**{value.bit_length() - 1}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def describe_unknown_key(path: KeyPath, names: dict[str, list[str]]) -> str:
    """Return the sentence about an unknown key: another tool's name is answered with ours, a typo with the nearest key."""
    full, key = format_path(path), str(path[-1])
    word = key.lower().replace("-", "_")
    ours = FOREIGN_KEYS.get(full) or FOREIGN_KEYS.get(word)
    if ours and ours.partition(":")[0] != full:
        return f"{full}: unknown key - zoedge calls this '{ours}'"
    if word in REASON_BY_KEY:
        return f"{full}: unknown key - {REASON_BY_KEY[word]}"
    known = names.get(format_path(path[:-1]), [])
    near = suggest_nearest(key, known)
    if not near:  # the right word in the wrong place
        homes = [f"{section}.{key}".lstrip(".") for section, keys in names.items() if word in keys and word != "name"]
        near = f" - did you mean '{homes[0]}'?" if len(homes) == 1 else ""
    return f"{full}: unknown key{near or (' - there is: ' + ', '.join(known) if known else '')}"
