"""The command line of `zoedge estimate`: whether a run fits, before it is begun."""

from __future__ import annotations

import json as json_
import sys
from typing import Annotated, Any

import typer

from . import app
from .arguments import JsonOption, OverridesArgument, RecipeArgument
from .completing import complete_values

BudgetOption = Annotated[
    str | None,
    typer.Option(help="The run must fit into this memory, such as 8GB or 7.5GiB. Without it, into what is free here."),
]
MeasureOption = Annotated[
    bool, typer.Option("--measure", help="Load the model and take the longest batch's step, in a process of its own.")
]
PlannedDeviceOption = Annotated[
    str | None,
    typer.Option(
        help="The run is planned for cpu or cuda. Without it, model.device decides.",
        autocompletion=complete_values("cpu", "cuda"),
    ),
]


@app.command()
def estimate(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    budget: BudgetOption = None,
    measure: MeasureOption = False,
    device: PlannedDeviceOption = None,
    json: JsonOption = False,
) -> None:
    """Predict a run's memory by part, its disk and its time; exit code 3 if it will not fit. Loads no weights."""
    from ..commands.estimate import fit, machine, text
    from ..commands.estimate import measure as estimate_measure
    from ..errors import UsageError
    from ..recipe.reading import read_recipe

    if device not in (None, "cpu", "cuda"):
        raise UsageError(f"--device: '{device}' is not cpu or cuda.")
    budget_bytes = machine.parse_bytes(budget, "--budget") if budget is not None else None
    checked = read_recipe(recipe, [*(overrides or []), *([f"model.device={device}"] if device else [])])
    plan = fit.make_plan(checked)
    report = describe_plan(plan, budget_bytes)
    if measure:
        report["measured"] = estimate_measure.measure_in_child(checked)
    typer.echo(json_.dumps(report) if json else "\n".join(text.format_report(plan, report)))
    if not report["fits"]:
        sys.exit(3)  # of typer.Exit, an app that is not standalone only returns the code


def describe_plan(plan: Any, budget_bytes: int | None) -> dict[str, Any]:
    """Return what a plan needs, by part, and whether it fits into a budget, or else into what is free."""
    from ..commands.estimate import fit, machine, time

    cuda, step = plan.workload.cuda, plan.workload.step
    free, where = (budget_bytes, "the budget") if budget_bytes is not None else machine.read_memory_budget(cuda)
    report: dict[str, Any] = {
        "needs": plan.needed_bytes,
        "free": free,
        "where": where,
        "fits": plan.needed_bytes <= free,
        "predicted": plan.parts,
        "moment": plan.fullest_moment,
        "device": "cuda" if cuda else "cpu",
        "moments": plan.moment_totals,
        "disk": time.disk_bytes(plan),
        "seconds": time.estimate_seconds(plan),
        "longest": step.length,
        "rows": step.tokens,
        "trained": plan.workload.elements,
    }
    fitted, changes = fit.fit_plan(plan, free)
    if not report["fits"]:
        report["levers"] = [lever.format_change(free) for lever in fit.find_savings(plan, free)]
        report["change"] = [f"{lever.key}={lever.new}" for lever in changes] if fitted.needed_bytes <= free else []
    return report
