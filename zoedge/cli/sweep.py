"""The command line of `zoedge sweep`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from . import app
from .arguments import OverridesArgument, RecipeArgument
from .completing import complete_yaml_files

ValuesArgument = Annotated[
    Path,
    typer.Argument(
        help="a .yaml file: recipe keys and lists of values", metavar="SWEEP.yaml", autocompletion=complete_yaml_files
    ),
]


RandomOption = Annotated[int, typer.Option("--random", min=0, help="so many points drawn at random, not the grid")]
SeedOption = Annotated[int, typer.Option(help="of --random")]
FolderOption = Annotated[Path | None, typer.Option("--dir", help="where the runs go; default: output.dir/SWEEP")]
ListOption = Annotated[bool, typer.Option("--dry-run", help="print the points, and stop")]
LinesOption = Annotated[bool, typer.Option("--plain", help="every run's lines, instead of its live panel")]


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
) -> None:
    """Train one recipe with many values, a run each; a run that is finished is not run again."""
    from ..commands.sweep import build_points, collect_results, format_table, run_points

    points = build_points(recipe, values, overrides, folder, draws, seed)
    if dry_run:
        for point in points:
            typer.echo(point.name)
        return
    how = ["--plain"] if plain else [] if sys.stdout.isatty() else ["--quiet"]
    run_points(points, how, typer.echo, shlex.join(["zoedge", *sys.argv[1:]]))
    results = collect_results(points)
    typer.echo("\n" + "\n".join(format_table(results)))
    print_best(results)


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
