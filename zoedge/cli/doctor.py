"""The command line of `zoedge doctor`."""

from __future__ import annotations

import json as json_
from typing import Annotated

import typer

from . import app
from .arguments import JsonOption


@app.command()
def doctor(
    json: JsonOption = False,
    fix_hints: Annotated[
        bool, typer.Option("--fix-hints", help="Print what to type against what is in the way.")
    ] = False,
) -> None:
    """Print versions, processor, memory, disk and cache, and test the arithmetic that replay rests on."""
    from ..commands.doctor.doctor import advise, examine

    report, well = examine()
    hints = advise(report, well) if fix_hints else []
    if json:
        typer.echo(json_.dumps({**report, "well": well, **({"hints": hints} if fix_hints else {})}))
    else:
        for key, value in report.items():
            typer.echo(f"{key:14} {value}")
        typer.echo("all well" if well else "something is wrong: see above")
        for what, how in hints:
            typer.echo(f"\n{what}\n  {how}")
        if fix_hints and not hints:
            typer.echo("nothing is in the way")
    raise typer.Exit(0 if well else 8)
