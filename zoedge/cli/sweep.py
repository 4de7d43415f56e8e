"""The command line of `zoedge sweep`."""

from __future__ import annotations

import json as json_
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from . import app
from .arguments import JsonOption, OverridesArgument, RecipeArgument
from .completing import complete_yaml_files

ValuesArgument = Annotated[
    Path,
    typer.Argument(
        help="It is a .yaml file of recipe keys and lists of values.",
        metavar="SWEEP.yaml",
        autocompletion=complete_yaml_files,
    ),
]
RandomOption = Annotated[
    int, typer.Option("--random", min=0, help="Draw so many points at random, instead of taking the whole grid.")
]
SeedOption = Annotated[int, typer.Option(help="The points of --random are drawn by this number.")]
FolderOption = Annotated[
    Path | None, typer.Option("--dir", help="The runs go into this folder. Without it, into output.dir/SWEEP.")
]
ListOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the points, their number, passes and time, and stop.")
]
LinesOption = Annotated[bool, typer.Option("--plain", help="Print every run's lines, instead of its live panel.")]


@app.command()
def sweep(
    recipe: RecipeArgument,
    values: ValuesArgument,
    overrides: OverridesArgument = None,
    draws: RandomOption = 0,
    seed: SeedOption = 0,
    folder: FolderOption = None,
    dry_run: ListOption = False,
    plain: LinesOption = False,
    json: JsonOption = False,
) -> None:
    """Train one recipe with many values, a run each; a run that is finished is not run again."""
    from ..commands.sweep import build_points, collect_results, format_table, run_points

    points = build_points(recipe, values, overrides, folder, draws, seed)
    if dry_run:
        print_plan(points, json)
        return
    how = ["--quiet"] if json or not (plain or sys.stdout.isatty()) else ["--plain"] if plain else []
    run_points(points, how, partial(typer.echo, err=json), shlex.join(["zoedge", *sys.argv[1:]]))
    results = collect_results(points)
    if json:
        print_results(results)
        return
    typer.echo("\n" + "\n".join(format_table(results)))
    print_best(results)


def print_plan(points: list[Any], json: bool) -> None:
    """Print a sweep's points before it is run, and what it will cost: as lines, or as one JSON object."""
    from ..commands.sweep_cost import plan_sweep
    from ..run.display import format_seconds

    plan = plan_sweep(points)
    if json:
        typer.echo(json_.dumps({"runs": [{"name": p.name, **p.values} for p in points], **plan._asdict()}))
        return
    for point in points:
        typer.echo(point.name)
    time = (
        ""
        if plan.seconds is None
        else f", about {format_seconds(plan.seconds)} on this machine, without the search for eps and lr"
    )
    typer.echo(
        f"{plan.points:,} points, {plan.finished:,} of them finished; {plan.passes:,} forward passes of a row{time}"
    )
    if plan.why:
        typer.echo(f"no time is predicted: {plan.why}")


def print_results(results: list[Any]) -> None:
    """Print a sweep's results as JSON, one object a line, the best first."""
    from dataclasses import asdict

    for result in results:
        scores = {which: asdict(score) for which, score in result.scores.items()}
        table = {"name": result.point.name, "values": result.point.values, "state": result.state, "steps": result.steps}
        typer.echo(json_.dumps({**table, "seconds": round(result.seconds, 1), **scores}))


def print_best(results: list[Any]) -> None:
    """Write the sweep's report, and print where it and the best run are. UsageError: no run took a step."""
    from ..commands.report import REPORT_FILE, require_matplotlib, write_report
    from ..errors import UsageError
    from ..run.folder import LOG_FILE, run_folder

    best = results[0]
    if best.valid is None and best.test is not None:
        typer.echo("sorted by the loss on the test rows, which are no test any more: set data.valid to choose by")
    logs = [run_folder(result.point.recipe) / LOG_FILE for result in results if result.steps]
    where = run_folder(best.point.recipe).parent
    if not logs:
        raise UsageError("No run of the sweep took a step; their sentences stand above.")
    try:
        require_matplotlib("A sweep's report")
    except UsageError as e:
        typer.echo(str(e))
    else:
        typer.echo(f"report   {write_report(logs, where / REPORT_FILE, where.name)}")
    if best.valid is None and best.test is None:
        typer.echo("no run was scored, so none is the best: set data.valid to choose by")
    else:
        typer.echo(f"best     {run_folder(best.point.recipe)}")
