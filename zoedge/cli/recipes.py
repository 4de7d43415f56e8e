"""The command lines of `zoedge recipes ls | show | cp`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import app
from .completing import complete_recipes

recipes_app = typer.Typer(no_args_is_help=True, help="The recipes that come with zoedge.")
RecipeName = Annotated[str, typer.Argument(autocompletion=complete_recipes)]
app.add_typer(recipes_app, name="recipes")


@recipes_app.command("ls")
def ls() -> None:
    """List the shipped recipes, each with its first comment."""
    from ..commands.recipes import list_recipes

    for name, comment in list_recipes():
        typer.echo(f"{name:24} {comment}".rstrip())


@recipes_app.command("show")
def show(name: RecipeName) -> None:
    """Print a shipped recipe."""
    from ..commands.recipes import read_text

    typer.echo(read_text(name), nl=False)


@recipes_app.command("cp")
def cp(name: RecipeName, to: Annotated[Path, typer.Argument(help="a file or a folder")] = Path(".")) -> None:
    """Copy a shipped recipe, to change it."""
    from ..commands.recipes import copy_recipe

    target = copy_recipe(name, to)
    typer.echo(f"{target}   edit it, then: zoedge finetune {target}")
