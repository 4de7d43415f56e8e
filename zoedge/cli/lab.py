"""The command lines of `zoedge lab ls | run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import app
from .completing import complete_experiments

lab_app = typer.Typer(no_args_is_help=True, help="The papers' small experiments, run by the same engine.")
app.add_typer(lab_app, name="lab")


@lab_app.command("ls")
def ls() -> None:
    """List the experiments, each with its question."""
    from ..commands.lab import list_experiments

    for name, about in list_experiments():
        typer.echo(f"{name:14} {about}")


@lab_app.command("run")
def run(
    name: Annotated[str, typer.Argument(help="It is a name of `zoedge lab ls`.", autocompletion=complete_experiments)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Each sets an option of the experiment, such as steps=1000.", metavar="[KEY=VALUE]..."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The noise is drawn by this number.", min=0, max=2**32 - 1)] = 0,
    out: Annotated[Path, typer.Option(help="NAME.json and NAME.svg go into this folder.")] = Path("runs/lab"),
) -> None:
    """Run an experiment, write its numbers (JSON) and a plot (SVG), and say whether the paper's finding was reproduced."""
    from ..commands import lab

    experiment = lab.make_experiment(name, overrides or [])
    outcome = lab.run_experiment(name, experiment, seed, out)
    for claim in outcome.claims:
        typer.echo(f"{'reproduced' if claim.holds else 'NOT reproduced':15} {claim.paper}\n{'':15} here: {claim.here}")
    typer.echo(f"{out / name}.json   {out / name}.svg")
