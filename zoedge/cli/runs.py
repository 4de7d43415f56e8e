"""runs ls | rm."""

from __future__ import annotations

import json as json_
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from . import app

runs_app = typer.Typer(no_args_is_help=True, help="The runs that there are: list them, remove some.")
app.add_typer(runs_app, name="runs")


@runs_app.command("ls")
def ls(
    folder: Annotated[Path, typer.Option("--dir", help="where the runs are")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
) -> None:
    """Every run with its state, steps and last score, the newest first."""
    from ..commands.report.words import format_bytes
    from ..commands.runs import format_age, list_runs
    from ..errors import make_printable

    found = list_runs(folder)
    if json:
        for e in found:
            typer.echo(json_.dumps(asdict(e)))
        return
    if not found:
        typer.echo(f"no runs in {folder}")
        return
    rows = [("run", "model", "task", "state", "steps", "score", "age", "size", "fingerprint")]
    for e in found:
        steps = f"{e.steps:,}/{e.of:,}" if e.of else ""
        score = next((f"{k} {v}" for k, v in order_columns(e.score).items()), "") if e.score else ""
        rows.append(
            (
                make_printable(e.name, 48),
                make_printable(e.model.rpartition("/")[2], 24),
                e.task,
                e.state,
                steps,
                score,
                format_age(e.at),
                format_bytes(e.bytes),
                e.fingerprint[:8],
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows)]
    right = {4, 6, 7}
    for row in rows:
        cells = (f"{x:>{w}}" if i in right else f"{x:<{w}}" for i, (x, w) in enumerate(zip(row, widths)))
        typer.echo("  ".join(cells).rstrip())
    for e in found:
        if e.wrong:
            typer.echo(make_printable(e.wrong, 400), err=True)


def order_columns(score: object) -> dict[str, str]:
    """A score's columns, calibrated before raw."""
    columns: dict[str, str] = score.columns()  # type: ignore[attr-defined]
    return dict(sorted(columns.items(), key=lambda x: x[0] != "calibrated"))


@runs_app.command("rm")
def rm(
    run: Annotated[list[str], typer.Argument(help="runs' folders or names")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
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
