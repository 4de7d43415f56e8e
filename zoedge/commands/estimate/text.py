"""The estimate as lines for a terminal."""

from __future__ import annotations

from typing import Any

from ...run.display import format_seconds
from .fit import Plan, format_refusal
from .machine import format_bytes

# -- for people


def format_report(plan: Plan, found: dict[str, Any]) -> list[str]:
    """The lines of `zoedge estimate`. found: what its --json prints."""
    recipe, needs, fits = plan.recipe, found["needs"], found["fits"]
    source = f"{recipe.model.source}, {recipe.model.quantization}, {found['trained']:,} trained, on {found['device']}"
    long = f"{found['rows']:,} token rows in the largest forward of a step, sequences of {found['longest']:,}"
    if plan.datasets is None:
        long += ", taken from data.max_length: the tokenizer is not here yet"
    lines = [f"{recipe.name}: {source}", f"{'':9}{long}", ""]
    if fits:
        lines.append(
            f"memory   fits: needs {format_bytes(needs)}, {format_bytes(found['free'])} free on {found['where']}"
        )
    else:
        lines.append(format_refusal(plan, found["free"], found["where"]))
    lines += [f"{'':9}{part:12}{format_bytes(count):>9}" for part, count in found["predicted"].items() if count]
    lines.append(f"{'':9}at its fullest moment, {found['moment']}; how near such figures came: docs/estimate.md")
    if not fits and found["change"]:
        lines.append(f"{'':9}fits with: {' '.join(found['change'])}")
    elif not fits:
        lines.append(f"{'':9}no train.rows, estimator.queries and train.batch make it fit")
    lines += [f"{'':9}or {lever}" for lever in found.get("levers", ())[1:3]]
    if "measured" in found:
        lines += ["", *format_comparison(found)]
    lines.append("")
    lines.append("disk     " + ", ".join(f"{what} {format_bytes(count)}" for what, count in found["disk"].items()))
    took = found["seconds"]
    whole = format_seconds(sum(value for what, value in took.items() if what != "step"))
    rest = ", ".join(f"{what} {format_seconds(value)}" for what, value in took.items() if what != "step")
    lines.append(
        f"time     about {took['step']:.3g} s a step, {whole} in all ({rest}): an estimate from products timed here"
    )
    return lines


def format_comparison(found: dict[str, Any]) -> list[str]:
    """Predicted against measured, by moment."""
    predicted, real = found["moments"], found["measured"]
    pairs = {
        "loading": (("loading",), ("loading", "base")),
        "lower layers": (("lower layers",), ("lower layers",)),
        "step": (("step", "step's logits", "update"), ("step",)),
        "look": (("look", "look's logits"), ("look",)),
    }
    lines = [f"{'':9}{'':14}{'predicted':>12}{'measured':>12}{'error':>9}"]
    rows = {
        name: (max(predicted.get(k, 0) for k in ours), max(real.get(k, {}).get("peak", 0) for k in theirs))
        for name, (ours, theirs) in pairs.items()
    }
    rows["peak"] = (max(p for p, _ in rows.values()), max(m for _, m in rows.values()))
    for name, (p, m) in rows.items():
        if p and m:
            lines.append(f"{'':9}{name:14}{format_bytes(p):>12}{format_bytes(m):>12}{100 * (p / m - 1):>+8.1f} %")
    return ["measured in a process of its own", *lines]
