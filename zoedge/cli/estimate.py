"""estimate: whether a run fits, before it is begun."""

from __future__ import annotations

import json as json_
import sys
from typing import Annotated, Any

import typer

from . import app
from .training import JsonOption


@app.command()
def estimate(
    recipe: Annotated[str, typer.Argument(help="a .yaml file, or the name of a shipped recipe")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, such as train.batch=8", metavar="[KEY=VALUE]...")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="memory to fit into, such as 8GB or 7.5GiB; default: what is free here")
    ] = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="load the model and take the longest batch's step, in a process of its own"),
    ] = False,
    device: Annotated[str | None, typer.Option(help="cpu | cuda; default: as model.device says")] = None,
    json: JsonOption = False,
) -> None:
    """Predict a run's memory by part, its disk and its time; exit code 3 if it will not fit. Loads no weights."""
    from ..commands.estimate import fit, machine, text, time
    from ..commands.estimate import measure as estimate_measure
    from ..errors import UsageError
    from ..recipe.reading import read_recipe

    if device not in (None, "cpu", "cuda"):
        raise UsageError(f"--device: '{device}' is not cpu or cuda.")
    most = machine.parse_bytes(budget, "--budget") if budget is not None else None
    checked = read_recipe(recipe, [*(overrides or []), *([f"model.device={device}"] if device else [])])
    plan = fit.make_plan(checked)
    cuda = plan.workload.cuda
    there, where = (most, "the budget") if most is not None else machine.read_memory_budget(cuda)
    fits, (fitted, changes) = plan.needed_bytes <= there, fit.fit_plan(plan, there)
    found: dict[str, Any] = {
        "needs": plan.needed_bytes,
        "free": there,
        "where": where,
        "fits": fits,
        "predicted": plan.parts,
        "moment": plan.fullest_moment,
        "device": "cuda" if cuda else "cpu",
        "moments": plan.moment_totals,
        "disk": time.disk_bytes(plan),
        "seconds": time.estimate_seconds(plan),
        "longest": plan.workload.step.length,
        "rows": plan.workload.step.tokens,
        "trained": plan.workload.elements,
    }
    if not fits:
        found["levers"] = [lever.format_change(there) for lever in fit.find_savings(plan, there)]
        found["change"] = [f"{lever.key}={lever.new}" for lever in changes] if fitted.needed_bytes <= there else []
    if measure:
        found["measured"] = estimate_measure.measure_in_child(checked)
    if json:
        typer.echo(json_.dumps(found))
    else:
        for line in text.format_report(plan, found):
            typer.echo(line)
    if not fits:
        sys.exit(3)  # of typer.Exit, an app that is not standalone only returns the code
