"""This module collects what is known of a run, from its log and from the notes beside it.

Notes (metrics.jsonl) may come from anyone, so every value of theirs is used only after its type is checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core.types import CLIPPED, MICRO_BATCHED, SKIPPED
from ...recipe.recipe import Recipe, dump_recipe
from ...run import folder, identity
from ...run.evaluate import ClosedForm, Score

if TYPE_CHECKING:
    from ...log.log import Log
    from ...log.packed import PackedLog

SCORE_FIELDS = ("accuracy", "calibrated", "majority", "f1", "exact_match", "reward", "drift", "text", "base_text")


@dataclass
class RunFacts:
    """All that a report shows of a run. What is not known is empty or None; steps without a finite value have NaN."""

    path: Path
    name: str
    recipe: Recipe
    state: str  # "finished", or after how many steps it stopped
    steps: int  # in the log
    trained: int  # elements
    fingerprint: str
    log_bytes: int
    counts: dict[str, int]  # steps that something happened to, rewinds, and losses in all
    loss: np.ndarray  # [steps]: the mean of a step's losses
    gamma: np.ndarray  # [steps, queries]: the weights g
    lr: np.ndarray  # [steps]
    size: np.ndarray  # [steps]: |lr g| sqrt(trained), the length of a step of sgd along noise of unit variance
    exact: bool  # the steps have that length
    before: Score | None = None  # of the held-out rows
    closed_form: ClosedForm | None = None
    after: Score | None = None
    valid: list[tuple[int, Score]] = field(default_factory=list)  # (steps done, score of the validation rows)
    curvature: list[tuple[int, float, float]] = field(default_factory=list)  # (steps done, tr H, its standard error)
    sessions: list[dict[str, Any]] = field(default_factory=list)  # machine and versions of each start
    rows: dict[str, int] = field(default_factory=dict)  # by set
    samples: list[dict[str, Any]] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=dict)  # seconds by part
    predicted: dict[str, float] = field(default_factory=dict)  # bytes by part
    measured: float = 0.0  # bytes at the peak
    seconds: float | None = None  # of the whole run
    at: int = 0  # the step that was delivered; 0: the last

    @property
    def yaml(self) -> str:
        """The recipe with every setting."""
        return dump_recipe(self.recipe)

    @property
    def ends(self) -> list[tuple[int, Score]]:
        """The scores of the held-out rows before the run and after it, each as (steps done, score)."""
        pairs = [(0, self.before), (self.at or self.steps, self.after)]
        return [(step, score) for step, score in pairs if score is not None]

    @property
    def passes(self) -> int:
        """The forward passes of a batch: one for each loss in the log."""
        return self.counts["losses"]


def read_facts(path: Path) -> RunFacts:
    """Return the facts of a run. path: its log, raw or packed, or its folder. DamagedError, UsageError: it cannot be read."""
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
            if finite := [x for x in r.losses if math.isfinite(x)]:
                loss[i] = math.fsum(finite) / len(finite)
    counts = {
        word: sum(bool(r.flags & bit) for r in records)
        for word, bit in (("not finite", SKIPPED), ("clipped", CLIPPED), ("split to fit memory", MICRO_BATCHED))
    }
    counts |= {"rewinds": journal.state.rewinds, "losses": sum(len(r.losses) for r in records)}
    facts = RunFacts(
        path=journal.path,
        name=recipe.name,
        recipe=recipe,
        state=describe_state(journal, recipe),
        steps=len(records),
        trained=elements,
        fingerprint=journal.fingerprint,
        log_bytes=journal.path.stat().st_size,
        counts=counts,
        loss=loss,
        gamma=gamma,
        lr=lr,
        size=lr * np.sqrt(np.nansum(gamma**2, axis=1) * elements),
        exact=has_exact_size(recipe),
    )
    if journal.path.name == folder.LOG_FILE:  # the notes beside a packed log, or a copy, may be of another run
        add_metrics(facts, journal)
    return facts


def describe_state(journal: Log | PackedLog, recipe: Recipe) -> str:
    """Return "finished", or after how many steps the run stopped."""
    if journal.state.end is not None:
        return "finished"
    return f"stopped after {len(journal):,} of {recipe.train.steps:,} steps"


def has_exact_size(recipe: Recipe) -> bool:
    """Return whether the formula for the length of a step is exact, not only an estimate.

    It is where a step moves by lr times g times its noise, and every element of the noise has unit variance.
    """
    return recipe.rule.linear and recipe.noise.dense


def add_metrics(facts: RunFacts, journal: Log | PackedLog) -> None:
    """Add what metrics.jsonl says of the run. A later line of the same step replaces an earlier one."""
    valid: dict[int, Score] = {}
    samples: dict[int, list[Any]] = {}
    lines = folder.read_metrics(journal.path.parent)
    rows = folder.newest_rows(lines)
    for line in lines:
        if line.get("event") == "valid" and not folder.lines_of_rows([line], rows):
            continue
        score, step = parse_score(line), line.get("step")
        if not isinstance(step, int) or not 0 <= step <= len(journal):
            step = None
        match line.get("event"):
            case "before" if score:
                facts.before = score
            case "closed_form" if score:
                passes = parse_number(line.get("passes")) or 0.0
                facts.closed_form = ClosedForm(score, int(passes), line.get("begins") is True)
            case "after" if score and step is not None:
                facts.after = score
            case "valid" if score and step is not None and (step == 0 or folder.is_current(line, journal[step - 1])):
                valid[step] = score
            case "curvature" if step is not None and (trace := parse_number(line.get("trace"))) is not None:
                facts.curvature.append((step, trace, parse_number(line.get("error")) or 0.0))
            case "session":
                facts.sessions.append({k: v for k, v in line.items() if k not in ("event", "at", "step")})
            case "rows":
                facts.rows = {k: v for k, v in line.items() if isinstance(v, int) and k in ("train", "valid", "test")}
            case "samples" if step is not None and isinstance(line.get("samples"), list):
                samples[step] = line["samples"]
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
    facts.samples = list(pair_samples(samples))


def parse_number(value: object) -> float | None:
    """Return a finite number as a float; None: the value is something else."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
        return None
    return float(value)


def collect_numbers(table: object) -> dict[str, float]:
    """Return the positive numbers of a note by name, from all its levels."""
    numbers: dict[str, float] = {}
    for key, value in table.items() if isinstance(table, dict) else ():
        if isinstance(value, dict):
            numbers |= collect_numbers(value)
        elif key not in ("step", "at", "seq") and (number := parse_number(value)) is not None and number > 0:
            numbers[str(key)] = number
    return numbers


def parse_score(line: dict[str, Any]) -> Score | None:
    """Return the score that a note holds; None: it holds none that can be shown."""
    if parse_number(line.get("loss")) is None or not isinstance(line.get("count"), int) or line["count"] < 1:
        return None
    if any(line.get(name) is not None and parse_number(line[name]) is None for name in SCORE_FIELDS):
        return None
    return Score.of(line)


def pair_samples(samples: dict[int, list[Any]]) -> Iterator[dict[str, Any]]:
    """Yield the text and right answer of each sample, with the first and the last answer of the model."""
    if not samples:
        return
    first, last = samples[min(samples)], samples[max(samples)]
    for a, b in zip(first, last):
        words = [x.get(k) for x, k in ((b, "text"), (b, "right"), (a, "answer"), (b, "answer")) if isinstance(x, dict)]
        if len(words) == 4 and all(isinstance(x, str) for x in words) and a.get("text") == b["text"]:
            text, right, before, after = words
            yield {"text": text, "right": right, "before": before if len(samples) > 1 else None, "after": after}


# -- several runs


def flatten_recipe(table: object, path: str = "") -> dict[str, Any]:
    """Return the values of a recipe by their dotted keys."""
    if not isinstance(table, dict) or not table:
        return {path: table}
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= flatten_recipe(value, f"{path}.{key}".lstrip("."))
    return flat


def recipe_differences(runs: Sequence[RunFacts]) -> dict[str, list[str]]:
    """Return {dotted key: a text for each run} of what the recipes differ in, apart from names and folders."""
    from ...recipe.sentences import format_value

    tables = [flatten_recipe(run.recipe.resolved()) for run in runs]
    differences: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for table in tables for key in table):
        values = [format_value(table[key]).strip("'") if key in table else "-" for table in tables]
        if len(set(values)) > 1 and key.partition(".")[0] not in ("name", "output"):
            differences[key] = values
    return differences
