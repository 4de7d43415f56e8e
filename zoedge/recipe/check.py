"""What the user wrote: YAML read strictly, every mistake at once with file:line:column and the way out.

A section's keys are the fields of the class that uses it, and each default is written there alone. `model`, `data`,
`train`, `eval`, `log` and `output` are here; noise, estimator, rule, space and task are the parts' own classes.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..core.parts import PART_FOLDERS
from ..errors import UsageError, ZoedgeError, format_faults
from .parts import build_section, incompatible_parts, parse_part
from .recipe import WATCHDOG_KEY, Recipe, part_name
from .sections import DEFAULT_PARTS, REQUIRED_KEYS, SECTIONS, Curvature, RunName, Seed, Split, WatchdogOptions
from .sentences import (
    MAX_FAULTS,
    MISSING_KEY,
    UNKNOWN_KEY,
    describe_errors,
    describe_unknown_key,
    format_path,
    format_value,
)
from .strict_yaml import MAX_DEPTH, KeyPath, Position, Positions

AUTO_WATCHDOG = WatchdogOptions(rise=1.5, rewinds=8)

AUTO_TRUST = 0.03  # docs/auto.md says what it was chosen by


def check(table: dict[str, Any], marks: Positions, where: str, wrong: Collection[str] = ()) -> Recipe:
    """The recipe of a table; every mistake is collected, beside those in `wrong`, before one UsageError is raised."""
    if not isinstance(table, dict) or is_malformed(table):  # a log's recipe has not come through read_yaml
        raise UsageError(f"{where}: not a table of keys and values, at most {MAX_DEPTH} deep, without NUL characters.")
    found: list[tuple[Position, str]] = [((0, 0), text) for text in wrong]
    given = {key: value for key, value in table.items() if value is not None}

    def fault(path: KeyPath, what: str) -> None:
        place = next((marks[path[:i]] for i in range(len(path), -1, -1) if path[:i] in marks), (0, 0))
        at = f"{where}:{place[0]}:{place[1]}" if place[0] else f"{where} (key=value)" if marks else where
        found.append((place, f"{at}: {what}" + ("" if what.endswith(("?", ".")) else ".")))
        if len(found) > MAX_FAULTS:
            raise UsageError(format_faults([text for _, text in sorted(found)]))

    parts: dict[str, Any] = {}
    auto: set[str] = set()
    classes = {key: parse_part(key, given.get(key, DEFAULT_PARTS[key]), fault, (key,)) for key in PART_FOLDERS}
    names = {key: list(section.model_fields) for key, section in SECTIONS.items()}
    names |= {key: ["name", *(build_section(made).model_fields if made else ())] for key, (made, _) in classes.items()}
    names |= {
        "eval.curvature": list(Curvature.model_fields),
        "train.watchdog": list(WatchdogOptions.model_fields),
        "data.valid": list(Split.model_fields),
        "data.test": list(Split.model_fields),
    }
    names[""] = ["version", "name", "seed", *SECTIONS, *PART_FOLDERS]

    def validated(kind: Any, value: Any, path: KeyPath) -> Any:
        try:  # as JSON, whose lists pydantic also takes for tuples
            return TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
        except ValidationError as e:
            for place, what in describe_errors(e, value):
                place = (*path, *place)
                if what == UNKNOWN_KEY:
                    fault(place, describe_unknown_key(place, names))
                elif what == MISSING_KEY and len(place) == 2 and path[0] in REQUIRED_KEYS:
                    fault(place, f"{format_path(place)}: missing - such as '{REQUIRED_KEYS[path[0]]}'")
                else:
                    fault(place, f"{format_path(place)}: {what}")
        return None

    def made_of(made: Any, options: dict[str, Any], path: KeyPath) -> Any:
        """The part of a class and its options, parts within it first; None: it has faults."""
        if made is None or (checked := validated(build_section(made), options, path)) is None:
            return None
        values = vars(checked)
        for option, kind in made.nested.items():
            inner = {}
            for word, some in values[option].items():
                here = (*path, option, word)
                found, _ = parse_part(kind, word, fault, here)
                names[format_path(here)] = list(build_section(found).model_fields) if found else []
                inner[word] = made_of(found, {} if some is None else some, here)
            if None in inner.values():
                return None
            values = {**values, option: inner}
        for option in made.auto:
            if values[option] == "auto":
                values = {**values, option: getattr(made, option)}
                auto.add(format_path((*path, option)))
        try:
            return made(**values)
        except (ValueError, ZoedgeError) as e:
            fault((*path, *str(e).partition(":")[0].split(".")), f"{format_path(path)}.{e}")
            return None

    for key in table:
        if key not in names[""]:
            fault((key,), describe_unknown_key((key,), names))
    for key, example in REQUIRED_KEYS.items():
        if key not in given:
            fault((), f"{key}: missing - write '{example}'")
    if "version" in given and (given["version"] != 1 or type(given["version"]) is not int):
        fault(
            ("version",), f"version: {format_value(given['version'])} is not read by this zoedge - write 'version: 1'"
        )
    parts["name"] = validated(RunName, given.get("name", "run"), ("name",))
    parts["seed"] = validated(Seed, given.get("seed", 0), ("seed",))
    for key, section in SECTIONS.items():
        if key in given or key not in REQUIRED_KEYS:
            parts[key] = validated(section, given.get(key, {}), (key,))
    for key, (made, options) in classes.items():
        parts[key] = made_of(made, options, (key,))
    if parts.get("space") and parts.get("output") and "merged" in parts["output"].export and not parts["space"].merges:
        fault(("output", "export"), f"output.export: a {parts['space'].title} changes no weight: nothing to merge")
    if parts.get("eval") and parts["eval"].select == "best" and parts.get("data") and parts["data"].valid is None:
        fault(("eval", "select"), "eval.select: best is chosen on validation rows - write data.valid: {split: 0.1}")
    taken = parts["task"].formats if parts.get("task") else ()
    if parts.get("task") and parts.get("data") and parts["data"].format not in ("auto", *taken):
        home = "lm" if parts["data"].format == "text" else "chat"
        fault(
            ("data", "format"),
            f"data.format: {parts['data'].format} goes with task: {home}, not {part_name(parts['task'])}",
        )
    if parts.get("rule") and parts.get("train"):
        try:
            parts["rule"].check(parts["train"].steps)
        except ValueError as e:
            fault(("rule", str(e).partition(":")[0]), f"rule.{e}")
    for kind, option in (
        path.split(".") for path in sorted(auto)
    ):  # where one value alone goes with the others, it is it
        allowed = [parts[key].only_with.get(f"{kind}.{option}") for key in classes if parts.get(key)]
        if (only := next((a for a in allowed if a), None)) and parts.get(kind) is not None:
            parts[kind] = replace(parts[kind], **{option: only[0]})
            auto.discard(f"{kind}.{option}")
    for key, other, those, found_there in incompatible_parts(parts):
        fault((key,), f"{key}: {part_name(parts[key])} goes only with {other}: {those}, not {found_there}")
    if "rule.lr" in auto and "schedule" not in classes["rule"][1]:
        parts["rule"] = replace(parts["rule"], schedule="linear")
    if "rule.lr" in auto and parts.get("train") and "watchdog" not in parts["train"].model_fields_set:
        slope = bool(parts.get("estimator")) and parts["estimator"].slope and parts["rule"].linear
        guard = AUTO_WATCHDOG.model_copy(update={"trust": AUTO_TRUST}) if slope else AUTO_WATCHDOG
        parts["train"] = parts["train"].model_copy(update={"watchdog": guard})
        auto.add(WATCHDOG_KEY)
    output = parts.get("output")
    if output and "peft" in output.export and parts.get("space") and not parts["space"].adapter:
        parts["output"] = output.model_copy(update={"export": [x for x in output.export if x != "peft"]})
        if "export" in given.get("output", {}):
            what = f"space {part_name(parts['space'])} has no adapter, and PEFT no format for it"
            fault(("output", "export"), f"output.export: {what} - write [merged], or []")
    if found:
        raise UsageError(format_faults([text for _, text in sorted(found)]))
    return Recipe(**parts, auto=frozenset(auto))


def is_malformed(value: Any, left: int = MAX_DEPTH) -> bool:
    """Is it too deep, or is there a NUL, which no name of a file can hold?"""
    if isinstance(value, str):
        return "\0" in value
    inner = (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left < 0 or any(is_malformed(v, left - 1) for v in inner)
