"""What there is to know of a run, from its log and the notes beside it. Of notes nothing is trusted but its type."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...core.types import CLIPPED, MICRO_BATCHED, SKIPPED
from ...recipe.recipe import Recipe, dump_recipe
from ...run import folder, identity
from ...run.evaluate import Score

SCORE_FIELDS = ("accuracy", "calibrated", "majority", "f1", "exact_match", "reward")


@dataclass
class RunFacts:
    """A run. Arrays have a value a step; scores are (steps done, Score). What is not known is empty or None.

    size: |lr g| sqrt(trained), the length of an sgd step along dense noise of unit variance. exact: it is that.
    times: seconds by part; predicted: bytes by part; measured: bytes.
    """

    path: Path
    name: str
    recipe: Recipe
    state: str
    steps: int
    trained: int
    fingerprint: str
    log_bytes: int
    counts: dict[str, int]
    loss: Any
    gamma: Any
    lr: Any
    size: Any
    exact: bool
    before: Score | None = None
    after: Score | None = None
    valid: list[tuple[int, Score]] = field(default_factory=list)
    curvature: list[tuple[int, float, float]] = field(default_factory=list)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=dict)
    predicted: dict[str, float] = field(default_factory=dict)
    measured: float = 0.0
    seconds: float | None = None
    at: int = 0

    @property
    def yaml(self) -> str:
        return dump_recipe(self.recipe)

    @property
    def ends(self) -> list[tuple[int, Score]]:
        """The held-out rows' scores before and after."""
        pairs = [(0, self.before), (self.at or self.steps, self.after)]
        return [(step, score) for step, score in pairs if score is not None]

    @property
    def passes(self) -> int:
        """Forward passes of a batch: as many as losses were asked for."""
        return self.counts["losses"]


def read_facts(path: Path) -> RunFacts:
    """The facts of a log, raw or packed, or of the one in a folder. DamagedError, UsageError: it cannot be read."""
    from ...run.folder import open_any_log

    journal = open_any_log(str(path))
    recipe = identity.recipe_from_header(journal.header, str(path))
    records, elements = list(journal), journal.header.elements
    width = max((len(r.g) for r in records), default=1)
    gamma = np.full((len(records), width), np.nan)
    loss, lr = np.full(len(records), np.nan), np.array([r.lr for r in records])
    for i, r in enumerate(records):
        if not r.flags & SKIPPED:
            gamma[i, : len(r.g)] = r.g
            if found := [x for x in r.losses if math.isfinite(x)]:
                loss[i] = math.fsum(found) / len(found)
    counts = {
        word: sum(bool(r.flags & bit) for r in records)
        for word, bit in (("not finite", SKIPPED), ("clipped", CLIPPED), ("split to fit memory", MICRO_BATCHED))
    }
    counts |= {"rewinds": journal.state.rewinds, "losses": sum(len(r.losses) for r in records)}
    facts = RunFacts(
        journal.path,
        recipe.name,
        recipe,
        describe_state(journal, recipe),
        len(records),
        elements,
        journal.fingerprint,
        journal.path.stat().st_size,
        counts,
        loss,
        gamma,
        lr,
        lr * np.sqrt(np.nansum(gamma**2, axis=1) * elements),
        has_exact_size(recipe),
    )
    if journal.path.name == folder.LOG_FILE:  # of a packed log, or a copy, what is noted beside it may be another's
        add_metrics(facts, journal)
    return facts


def describe_state(journal: Any, recipe: Recipe) -> str:
    if journal.state.end is not None:
        return "finished"
    return f"stopped after {len(journal):,} of {recipe.train.steps:,} steps"


def has_exact_size(recipe: Recipe) -> bool:
    """Whether a step moves by lr times g times its noise, and the noise has as many elements of unit variance."""

    return recipe.rule.linear and recipe.noise.dense


def add_metrics(facts: RunFacts, journal: Any) -> None:
    """Into `facts`, what metrics.jsonl has; a later line of the same step takes the earlier one's place."""
    valid: dict[int, Score] = {}
    first: dict[int, list[Any]] = {}
    for line in folder.read_metrics(journal.path.parent):
        step, score = line.get("step"), parse_score(line)
        whole = isinstance(step, int) and 0 <= step <= len(journal)
        match line.get("event"):
            case "before" if score:
                facts.before = score
            case "after" if score and whole:
                facts.after = score
            case "valid" if (
                score and whole and step and line.get("seq", journal[step - 1].seq) == journal[step - 1].seq
            ):
                valid[step] = score
            case "curvature" if whole and parse_number(line.get("trace")) is not None:
                facts.curvature.append((step, float(line["trace"]), parse_number(line.get("error")) or 0.0))
            case "session":
                facts.sessions.append({k: v for k, v in line.items() if k not in ("event", "at", "step")})
            case "rows":
                facts.rows = {k: v for k, v in line.items() if isinstance(v, int) and k in ("train", "valid", "test")}
            case "samples" if whole and isinstance(line.get("samples"), list):
                first[step] = line["samples"]
            case "time":
                facts.times |= collect_numbers(line)
            case "memory":
                facts.predicted = collect_numbers(line.get("predicted"))
                facts.measured = parse_number(line.get("measured")) or facts.measured
            case "finished":
                facts.seconds = parse_number(line.get("seconds"))
                at = line.get("at")
                facts.at = at if isinstance(at, int) else 0
    facts.valid, facts.curvature = sorted(valid.items()), sorted({c[0]: c for c in facts.curvature}.values())
    facts.samples = list(pair_samples(first))


def parse_number(value: Any) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None


def collect_numbers(table: Any) -> dict[str, float]:
    """What of a note is a positive number by name, however deep it was put."""
    found: dict[str, float] = {}
    for key, value in table.items() if isinstance(table, dict) else ():
        if isinstance(value, dict):
            found |= collect_numbers(value)
        elif key not in ("step", "at", "seq") and (size := parse_number(value)) is not None and size > 0:
            found[str(key)] = size
    return found


def parse_score(line: dict[str, Any]) -> Score | None:
    """The score in a note; None: there is none that could be shown."""
    if parse_number(line.get("loss")) is None or not isinstance(line.get("count"), int) or line["count"] < 1:
        return None
    if any(line.get(name) is not None and parse_number(line[name]) is None for name in SCORE_FIELDS):
        return None
    return Score.of(line)


def pair_samples(noted: dict[int, list[Any]]) -> Iterator[dict[str, Any]]:
    """Each sample's text and right answer, and what was answered first and last."""
    if not noted:
        return
    first, last = noted[min(noted)], noted[max(noted)]
    for a, b in zip(first, last):
        words = [x.get(k) for x, k in ((b, "text"), (b, "right"), (a, "answer"), (b, "answer")) if isinstance(x, dict)]
        if len(words) == 4 and all(isinstance(x, str) for x in words) and a.get("text") == b["text"]:
            text, right, before, after = words
            yield {"text": text, "right": right, "before": before if len(noted) > 1 else None, "after": after}


# -- several


def flatten_recipe(table: Any, path: str = "") -> dict[str, Any]:
    """A recipe's values by dotted path."""
    if not isinstance(table, dict) or not table:
        return {path: table}
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= flatten_recipe(value, f"{path}.{key}".lstrip("."))
    return found


def recipe_differences(some: Sequence[RunFacts]) -> dict[str, list[str]]:
    """What the recipes differ in, but for names and folders: dotted path -> a text a run."""
    from ...recipe.sentences import format_value

    tables = [flatten_recipe(x.recipe.resolved()) for x in some]
    found: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for table in tables for key in table):
        values = [format_value(table[key]).strip("'") if key in table else "-" for table in tables]
        if len(set(values)) > 1 and key.partition(".")[0] not in ("name", "output"):
            found[key] = values
    return found
