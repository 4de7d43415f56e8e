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

from ..core.parts import FOLDERS
from ..errors import UsageError, ZoedgeError, listed
from .parts import build_part, schema, unmatched
from .recipe import WATCHDOG, Recipe, word_of
from .sections import DEFAULTS, REQUIRED, SECTIONS, Curvature, Name, Seed, Split, Watchdog
from .sentences import ABSENT, ENOUGH, UNKNOWN, dotted, mistakes, shown, unknown
from .strict_yaml import DEPTH, Marks, Path_, Place

GUARD = Watchdog(rise=1.5, rewinds=8)

TRUST = 0.03  # docs/auto.md says what it was chosen by


def check(table: dict[str, Any], marks: Marks, where: str, wrong: Collection[str] = ()) -> Recipe:
    """The recipe of a table; every mistake is collected, beside those in `wrong`, before one UsageError is raised."""
    if not isinstance(table, dict) or odd(table):  # a log's recipe has not come through read_yaml
        raise UsageError(f"{where}: not a table of keys and values, at most {DEPTH} deep, without NUL characters.")
    found: list[tuple[Place, str]] = [((0, 0), text) for text in wrong]
    given = {key: value for key, value in table.items() if value is not None}

    def fault(path: Path_, what: str) -> None:
        place = next((marks[path[:i]] for i in range(len(path), -1, -1) if path[:i] in marks), (0, 0))
        at = f"{where}:{place[0]}:{place[1]}" if place[0] else f"{where} (key=value)" if marks else where
        found.append((place, f"{at}: {what}" + ("" if what.endswith(("?", ".")) else ".")))
        if len(found) > ENOUGH:
            raise UsageError(listed([text for _, text in sorted(found)]))

    parts: dict[str, Any] = {}
    auto: set[str] = set()
    classes = {key: build_part(key, given.get(key, DEFAULTS[key]), fault, (key,)) for key in FOLDERS}
    names = {key: list(section.model_fields) for key, section in SECTIONS.items()}
    names |= {key: ["name", *(schema(made).model_fields if made else ())] for key, (made, _) in classes.items()}
    names |= {
        "eval.curvature": list(Curvature.model_fields),
        "train.watchdog": list(Watchdog.model_fields),
        "data.valid": list(Split.model_fields),
        "data.test": list(Split.model_fields),
    }
    names[""] = ["version", "name", "seed", *SECTIONS, *FOLDERS]

    def validated(kind: Any, value: Any, path: Path_) -> Any:
        try:  # as JSON, whose lists pydantic also takes for tuples
            return TypeAdapter(kind).validate_json(json.dumps(value), strict=True)
        except ValidationError as e:
            for place, what in mistakes(e, value):
                place = (*path, *place)
                if what == UNKNOWN:
                    fault(place, unknown(place, names))
                elif what == ABSENT and len(place) == 2 and path[0] in REQUIRED:
                    fault(place, f"{dotted(place)}: missing - such as '{REQUIRED[path[0]]}'")
                else:
                    fault(place, f"{dotted(place)}: {what}")
        return None

    def made_of(made: Any, options: dict[str, Any], path: Path_) -> Any:
        """The part of a class and its options, parts within it first; None: it has faults."""
        if made is None or (checked := validated(schema(made), options, path)) is None:
            return None
        values = vars(checked)
        for option, kind in getattr(made, "nested", {}).items():
            inner = {}
            for word, some in values[option].items():
                here = (*path, option, word)
                found, _ = build_part(kind, word, fault, here)
                names[dotted(here)] = list(schema(found).model_fields) if found else []
                inner[word] = made_of(found, {} if some is None else some, here)
            if None in inner.values():
                return None
            values = {**values, option: inner}
        for option in getattr(made, "auto", ()):
            if values[option] == "auto":
                values = {**values, option: getattr(made, option)}
                auto.add(dotted((*path, option)))
        try:
            return made(**values)
        except (ValueError, ZoedgeError) as e:
            fault((*path, *str(e).partition(":")[0].split(".")), f"{dotted(path)}.{e}")
            return None

    for key in table:
        if key not in names[""]:
            fault((key,), unknown((key,), names))
    for key, example in REQUIRED.items():
        if key not in given:
            fault((), f"{key}: missing - write '{example}'")
    if "version" in given and (given["version"] != 1 or type(given["version"]) is not int):
        fault(("version",), f"version: {shown(given['version'])} is not read by this zoedge - write 'version: 1'")
    parts["name"] = validated(Name, given.get("name", "run"), ("name",))
    parts["seed"] = validated(Seed, given.get("seed", 0), ("seed",))
    for key, section in SECTIONS.items():
        if key in given or key not in REQUIRED:
            parts[key] = validated(section, given.get(key, {}), (key,))
    for key, (made, options) in classes.items():
        parts[key] = made_of(made, options, (key,))
    if (
        parts.get("space")
        and parts.get("output")
        and "merged" in parts["output"].export
        and not getattr(parts["space"], "merges", True)
    ):
        fault(("output", "export"), f"output.export: a {parts['space'].title} changes no weight: nothing to merge")
    if parts.get("eval") and parts["eval"].select == "best" and parts.get("data") and parts["data"].valid is None:
        fault(("eval", "select"), "eval.select: best is chosen on validation rows - write data.valid: {split: 0.1}")
    taken = getattr(parts.get("task"), "formats", ())
    if parts.get("task") and parts.get("data") and parts["data"].format not in ("auto", *taken):
        home = "lm" if parts["data"].format == "text" else "chat"
        fault(
            ("data", "format"),
            f"data.format: {parts['data'].format} goes with task: {home}, not {word_of(parts['task'])}",
        )
    if parts.get("rule") and parts.get("train"):
        try:
            parts["rule"].check(parts["train"].steps)
        except ValueError as e:
            fault(("rule", str(e).partition(":")[0]), f"rule.{e}")
    for kind, option in (
        path.split(".") for path in sorted(auto)
    ):  # where one value alone goes with the others, it is it
        allowed = [getattr(parts.get(key), "only_with", {}).get(f"{kind}.{option}") for key in classes]
        if (only := next((a for a in allowed if a), None)) and parts.get(kind) is not None:
            parts[kind] = replace(parts[kind], **{option: only[0]})
            auto.discard(f"{kind}.{option}")
    for key, other, those, found_there in unmatched(parts):
        fault((key,), f"{key}: {word_of(parts[key])} goes only with {other}: {those}, not {found_there}")
    if "rule.lr" in auto and "schedule" not in classes["rule"][1]:
        parts["rule"] = replace(parts["rule"], schedule="linear")
    if "rule.lr" in auto and parts.get("train") and "watchdog" not in parts["train"].model_fields_set:
        slope = getattr(parts.get("estimator"), "slope", False) and word_of(parts["rule"]) == "sgd"
        guard = GUARD.model_copy(update={"trust": TRUST}) if slope else GUARD
        parts["train"] = parts["train"].model_copy(update={"watchdog": guard})
        auto.add(WATCHDOG)
    output = parts.get("output")
    if output and "peft" in output.export and not getattr(parts.get("space"), "adapter", True):
        parts["output"] = output.model_copy(update={"export": [x for x in output.export if x != "peft"]})
        if "export" in given.get("output", {}):
            what = f"space {word_of(parts['space'])} has no adapter, and PEFT no format for it"
            fault(("output", "export"), f"output.export: {what} - write [merged], or []")
    if found:
        raise UsageError(listed([text for _, text in sorted(found)]))
    return Recipe(**parts, auto=frozenset(auto))


def odd(value: Any, left: int = DEPTH) -> bool:
    """Is it too deep, or is there a NUL, which no name of a file can hold?"""
    if isinstance(value, str):
        return "\0" in value
    inner = (*value, *value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()
    return left < 0 or any(odd(v, left - 1) for v in inner)
