"""The command lines of `zoedge runs ls | rm`."""

from __future__ import annotations

import json as json_
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.canonical import null_nonfinite
from . import app
from .arguments import JsonOption, RunsArgument

runs_app = typer.Typer(no_args_is_help=True, help="The runs that there are: list them, remove some.")
app.add_typer(runs_app, name="runs")
DEFAULT_FOLDER = Path("runs")
TABLE_HEAD = ("run", "model", "task", "state", "steps", "score", "age", "size", "fingerprint")
NUMBER_COLUMNS = {4, 6, 7}


@runs_app.command("ls")
def ls(
    folder: Annotated[Path, typer.Option("--dir", help="The runs lie in this folder.")] = DEFAULT_FOLDER,
    json: JsonOption = False,
) -> None:
    """List every run with its state, steps and last score, the newest first."""
    from ..commands.runs import list_runs
    from ..errors import make_printable

    entries = (
        [] if folder == DEFAULT_FOLDER and not folder.exists() else list_runs(folder)
    )  # nothing was trained here yet
    if json:
        for entry in entries:
            typer.echo(json_.dumps(null_nonfinite(asdict(entry))))
    elif not entries:
        typer.echo(f"There are no runs in {folder}. `zoedge finetune RECIPE` makes one.")
    else:
        for line in format_table([TABLE_HEAD, *map(table_row, entries)]):
            typer.echo(line)
        for entry in entries:
            if entry.wrong:
                typer.echo(make_printable(entry.wrong, 400), err=True)


def table_row(entry: Any) -> tuple[str, ...]:
    """Return a run's cells, under TABLE_HEAD."""
    from ..commands.report.words import format_bytes
    from ..commands.runs import format_age
    from ..errors import make_printable

    score = next((f"{k} {v}" for k, v in order_columns(entry.score).items()), "") if entry.score else ""
    return (
        make_printable(entry.name, 48),
        make_printable(entry.model.rpartition("/")[2], 24),
        entry.task,
        entry.state,
        f"{entry.steps:,}/{entry.of:,}" if entry.of else "",
        score,
        format_age(entry.at),
        format_bytes(entry.bytes),
        entry.fingerprint[:8],
    )


def format_table(rows: list[tuple[str, ...]], numbers: set[int] = NUMBER_COLUMNS) -> Iterator[str]:
    """Yield the lines of a table. numbers: the columns whose cells stand at their right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = (f"{x:>{w}}" if i in numbers else f"{x:<{w}}" for i, (x, w) in enumerate(zip(row, widths)))
        yield "  ".join(cells).rstrip()


def order_columns(score: object) -> dict[str, str]:
    """Return a score's columns, calibrated before raw."""
    columns: dict[str, str] = score.columns()  # type: ignore[attr-defined]
    return dict(sorted(columns.items(), key=lambda x: x[0] != "calibrated"))


@runs_app.command("rm")
def rm(
    run: RunsArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove runs' folders, with their logs: what a run has learnt is gone."""
    from ..commands.report.words import format_bytes
    from ..commands.runs import count_bytes, find_removable, is_locked, remove_run
    from ..errors import LockedError, UsageError
    from ..run.folder import LOG_FILE

    folders = list(dict.fromkeys(find_removable(name) for name in run))  # all of them, before anything is removed
    for folder in folders:
        if is_locked(folder / LOG_FILE):
            raise LockedError(
                f"{folder}: a zoedge process is writing this run. Wait for it, or stop it. Nothing was removed."
            )
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("`zoedge runs rm` asks first, and here is nobody to ask: add --yes.")
        for folder in folders:
            typer.echo(f"{folder}: {format_bytes(count_bytes(folder))}")
        typer.confirm(f"Remove {'it' if len(folders) == 1 else f'these {len(folders)}'} for good?", abort=True)
    for folder in folders:
        typer.echo(f"removed {folder}: {remove_run(folder):,} bytes")
