"""sweep."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from . import app


@app.command()
def sweep(
    recipe: Annotated[str, typer.Argument(help="a .yaml file, or the name of a shipped recipe")],
    values: Annotated[Path, typer.Argument(help="a .yaml file: recipe keys and lists of values", metavar="SWEEP.yaml")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, for every run", metavar="[KEY=VALUE]...")
    ] = None,
    draws: Annotated[int, typer.Option("--random", min=0, help="so many points drawn at random, not the grid")] = 0,
    seed: Annotated[int, typer.Option(help="of --random")] = 0,
    folder: Annotated[Path | None, typer.Option("--dir", help="where the runs go; default: output.dir/SWEEP")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the points, and stop")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="every run's lines, instead of its live panel")] = False,
) -> None:
    """One recipe with many values, a run each; a run that is finished is not run again."""
    from ..commands.report import REPORT_FILE, require_matplotlib, write_report
    from ..commands.sweep import build_points, collect_results, format_table, run_points
    from ..errors import UsageError
    from ..run.folder import LOG_FILE, run_folder

    some = build_points(recipe, values, overrides, folder, draws, seed)
    if dry_run:
        for point in some:
            typer.echo(point.name)
        return
    how = ["--plain"] if plain else [] if sys.stdout.isatty() else ["--quiet"]
    run_points(some, how, typer.echo, shlex.join(["zoedge", *sys.argv[1:]]))
    found = collect_results(some)
    typer.echo("\n" + "\n".join(format_table(found)))
    first = found[0]
    if first.valid is None and first.test is not None:
        typer.echo("sorted by the loss on the test rows, which are no test any more: set data.valid to choose by")
    logs = [run_folder(r.point.recipe) / LOG_FILE for r in found if r.steps]
    where = run_folder(some[0].recipe).parent
    if not logs:
        raise UsageError("No run of the sweep took a step; their sentences stand above.")
    try:
        require_matplotlib("A sweep's report")
    except UsageError as e:
        typer.echo(str(e))
    else:
        typer.echo(f"report   {write_report(logs, where / REPORT_FILE, where.name)}")
    typer.echo(f"best     {run_folder(first.point.recipe)}")
