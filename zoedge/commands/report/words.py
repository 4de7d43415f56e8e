"""This module writes the numbers and names of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ...recipe.recipe import part_name
from ...run.display import format_seconds
from ...run.evaluate import Score, format_percent
from .facts import RunFacts

MEASURES = {  # a score's field -> what it is called, whether it is a share, whether more is better
    "calibrated": ("Calibrated accuracy", True, True),
    "accuracy": ("Raw accuracy", True, True),
    "f1": ("F1", True, True),
    "exact_match": ("Exact match", True, True),
    "reward": ("Reward", False, True),
    "loss": ("Loss", False, False),
    "drift": ("Drift from the base, nats", False, False),
    "text": ("Ordinary text, nats", False, False),
}


def format_bytes(count: float) -> str:
    """Return bytes as people write them: 9.8 GB, 81 MB, 1,234 bytes."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:,.{1 if count < 100 * scale and unit != 'kB' else 0}f} {unit}"
    return f"{count:,.0f} bytes"


def format_duration(seconds: float) -> str:
    """Return seconds as 9.8 s, 3 min 36 s or 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {left} s"


def format_measure(name: str, x: float | None) -> str:
    """Return a measure as a share in percent, or with four digits; "": there is none."""
    if x is None:
        return ""
    return format_percent(x) if MEASURES[name][1] else f"{x:.4f}"


def describe_change(name: str, facts: RunFacts) -> dict[str, str] | None:
    """Return the difference of a measure between before and after, as {"text", "kind"}; None: one of the two is missing.

    kind: `better`, `worse`, or `same`: equal, or a share whose difference is within its standard error.
    """
    if facts.before is None or facts.after is None:
        return None
    a, b = vars(facts.before)[name], vars(facts.after)[name]
    if a is None or b is None:
        return None
    _, share, more_is_better = MEASURES[name]
    text = f"{100 * (b - a):+.1f} points" if share else f"{b - a:+.4f}"
    unclear = a == b or (share and abs(b - a) < math.sqrt(b * (1 - b) / facts.after.count))
    return {
        "text": text.replace("-", "−"),
        "kind": "same" if unclear else "better" if (b > a) == more_is_better else "worse",
    }


def format_standard_error(score: Score) -> str:
    """Return the binomial standard error of an accuracy, in points; "": the score has no accuracy."""
    share = score.calibrated if score.calibrated is not None else score.accuracy
    return "" if share is None else f"{100 * math.sqrt(share * (1 - share) / score.count):.1f}"


def list_measures(runs: Sequence[RunFacts]) -> list[str]:
    """Return the names of the measures that any of the runs has."""
    scores = [s for x in runs for s in (x.before, x.after, *(s for _, s in x.valid)) if s is not None]
    return [name for name in MEASURES if any(vars(s)[name] is not None for s in scores)]


def describe_trained(facts: RunFacts) -> str:
    """Return the base, the space and the number of trained parameters, in a few words."""
    recipe = facts.recipe
    share = "" if recipe.model.quantization == "none" else f" in {recipe.model.quantization}"
    base = Path(recipe.model.source).name if recipe.model.source.count("/") > 1 else recipe.model.source
    return f"{base}{share}, {recipe.space.summary()}: {facts.trained:,} trained parameters"


def describe_data(facts: RunFacts) -> str:
    """Return the name of the training rows, with their number where it is known."""
    name = facts.recipe.data.train
    name = Path(name).name if name.count("/") > 1 else name
    return f"{facts.rows['train']:,} rows of {name}" if facts.rows.get("train") else name


def describe_method(facts: RunFacts) -> str:
    """Return noise x estimator x rule as the recipe has them."""
    r = facts.recipe
    option = r.estimator.radius_option
    radius = f" ({option} {vars(r.estimator)[option]:g})" if option else ""
    schedule = "" if r.rule.schedule == "constant" else f", {r.rule.schedule}"
    return f"{part_name(r.noise)} × {part_name(r.estimator)}{radius} × {part_name(r.rule)} (lr {r.rule.lr:g}{schedule})"


def find_best_run(runs: Sequence[RunFacts], name: str) -> int | None:
    """Return the index of the run that ends best by a measure; None: fewer than two runs have it."""
    ends = [(vars(x.after)[name], i) for i, x in enumerate(runs) if x.after and vars(x.after)[name] is not None]
    if len(ends) < 2:
        return None
    return (max if MEASURES[name][2] else min)(ends)[1]


def rank_shares(table: dict[str, float]) -> list[tuple[str, float, float]]:
    """Return (name, value, its share of the largest value), the largest first."""
    top = max(table.values(), default=1.0)
    return sorted(((k, v, v / top) for k, v in table.items()), key=lambda row: -row[1])


TEMPLATE_FILTERS = {
    "bytes": format_bytes,
    "duration": format_duration,
    "clock": format_seconds,
    "value": lambda x, name: format_measure(name, x),
}
