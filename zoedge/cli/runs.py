"""runs ls | rm."""

from __future__ import annotations

import json as json_
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from . import app

runs = typer.Typer(no_args_is_help=True, help="The runs that there are: list them, remove some.")
app.add_typer(runs, name="runs")


@runs.command("ls")
def ls(
    folder: Annotated[Path, typer.Option("--dir", help="where the runs are")] = Path("runs"),
    json: Annotated[bool, typer.Option("--json", help="one JSON object a line")] = False,
) -> None:
    """Every run with its state, steps and last score, the newest first."""
    from ..commands.report.words import size
    from ..commands.runs import age, entries
    from ..errors import plain

    found = entries(folder)
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
        score = next((f"{k} {v}" for k, v in shown(e.score).items()), "") if e.score else ""
        rows.append(
            (plain(e.name, 48), plain(e.model.rpartition("/")[2], 24), e.task, e.state, steps, score, age(e.at),
             size(e.bytes), e.fingerprint[:8])
        )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows)]
    right = {4, 6, 7}
    for row in rows:
        cells = (f"{x:>{w}}" if i in right else f"{x:<{w}}" for i, (x, w) in enumerate(zip(row, widths)))
        typer.echo("  ".join(cells).rstrip())
    for e in found:
        if e.wrong:
            typer.echo(plain(e.wrong, 400), err=True)


def shown(score: object) -> dict[str, str]:
    """A score's columns, calibrated before raw."""
    columns: dict[str, str] = score.columns()  # type: ignore[attr-defined]
    return dict(sorted(columns.items(), key=lambda x: x[0] != "calibrated"))


@runs.command("rm")
def rm(
    run: Annotated[list[str], typer.Argument(help="runs' folders or names")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
) -> None:
    """Remove runs' folders, with their logs: what a run has learnt is gone."""
    from ..commands.report.words import size
    from ..commands.runs import held, removable, remove, weight
    from ..errors import LockedError, UsageError
    from ..run.folder import LOG

    folders = list(dict.fromkeys(removable(name) for name in run))  # all of them, before anything is removed
    for folder in folders:
        if held(folder / LOG):
            raise LockedError(
                f"{folder}: a zoedge process is writing this run. Wait for it, or stop it. Nothing was removed."
            )
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("`zoedge runs rm` asks first, and here is nobody to ask: add --yes.")
        for folder in folders:
            typer.echo(f"{folder}: {size(weight(folder))}")
        typer.confirm(f"Remove {'it' if len(folders) == 1 else f'these {len(folders)}'} for good?", abort=True)
    for folder in folders:
        typer.echo(f"removed {folder}: {remove(folder):,} bytes")
