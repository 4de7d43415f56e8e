"""This module writes an estimate as lines for a terminal."""

from __future__ import annotations

from typing import Any

from ...run.display import format_seconds
from .fit import Plan, format_refusal
from .machine import format_bytes


def format_report(plan: Plan, figures: dict[str, Any]) -> list[str]:
    """Return the lines of `zoedge estimate`. figures: what its --json prints."""
    recipe, needed, fits = plan.recipe, figures["needs"], figures["fits"]
    source = (
        f"{recipe.model.source}, {recipe.model.quantization}, {figures['trained']:,} trained, on {figures['device']}"
    )
    sizes = f"{figures['rows']:,} token rows in the largest forward of a step, sequences of {figures['longest']:,}"
    if plan.datasets is None:
        sizes += ", taken from data.max_length: the tokenizer is not here yet"
    lines = [f"{recipe.name}: {source}", f"{'':9}{sizes}", ""]
    if fits:
        lines.append(
            f"memory   fits: needs {format_bytes(needed)}, {format_bytes(figures['free'])} free on {figures['where']}"
        )
    else:
        lines.append(format_refusal(plan, figures["free"], figures["where"]))
    lines += [f"{'':9}{part:12}{format_bytes(count):>9}" for part, count in figures["predicted"].items() if count]
    lines.append(f"{'':9}these are the parts at the fullest moment ({figures['moment']})")
    lines.append(f"{'':9}docs/estimate.md says how near such predictions came to what was measured")
    if not fits and figures["change"]:
        lines.append(f"{'':9}fits with: {' '.join(figures['change'])}")
    elif not fits:
        lines.append(f"{'':9}smaller train.rows, estimator.queries and train.batch do not make it fit")
    lines += [f"{'':9}or {saving}" for saving in figures.get("levers", ())[1:3]]
    if "measured" in figures:
        lines += ["", *format_comparison(figures)]
    lines.append("")
    lines.append("disk     " + ", ".join(f"{what} {format_bytes(count)}" for what, count in figures["disk"].items()))
    seconds = figures["seconds"]
    whole = format_seconds(sum(value for what, value in seconds.items() if what != "step"))
    rest = ", ".join(f"{what} {format_seconds(value)}" for what, value in seconds.items() if what != "step")
    lines.append(
        f"time     about {seconds['step']:.3g} s a step, {whole} in all ({rest}), estimated from products timed here"
    )
    return lines


def format_comparison(figures: dict[str, Any]) -> list[str]:
    """Return a table of predicted and measured bytes at each moment."""
    predicted, real = figures["moments"], figures["measured"]
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
    for name, (expected, seen) in rows.items():
        if expected and seen:
            error = f"{100 * (expected / seen - 1):>+8.1f} %"
            lines.append(f"{'':9}{name:14}{format_bytes(expected):>12}{format_bytes(seen):>12}{error}")
    return ["measured in a process of its own", *lines]
