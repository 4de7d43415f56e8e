"""The command lines of `zoedge recipes ls | show | cp`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import app
from .completing import complete_recipes

recipes_app = typer.Typer(no_args_is_help=True, help="The recipes that come with zoedge.")
RecipeName = Annotated[
    str, typer.Argument(help="It is a name of `zoedge recipes ls`.", autocompletion=complete_recipes)
]
app.add_typer(recipes_app, name="recipes")


WordsArgument = Annotated[list[str] | None, typer.Argument(help="List only recipes that these words stand in.")]


@recipes_app.command("ls")
def ls(words: WordsArgument = None) -> None:
    """List the shipped recipes in groups, those to begin with first; with words, search them."""
    from ..commands.recipes import group_recipes
    from ..errors import UsageError, make_printable

    groups = group_recipes(words or [])
    if not any(groups.values()):
        asked = make_printable(" ".join(words or []))
        raise UsageError(f"No shipped recipe has '{asked}'. `zoedge recipes ls` lists all of them.")
    for group, recipes in groups.items():
        if recipes:
            typer.echo(f"{group}:")
            for recipe in recipes:
                typer.echo(f"  {recipe.name:20} {recipe.needs:24} {recipe.comment}".rstrip())
    typer.echo("packaged: model and rows come from the package index. Times are of 2 cores of a shared machine.")


@recipes_app.command("show")
def show(name: RecipeName) -> None:
    """Print a shipped recipe."""
    from ..commands.recipes import read_text

    typer.echo(read_text(name), nl=False)


@recipes_app.command("cp")
def cp(
    name: RecipeName, to: Annotated[Path, typer.Argument(help="Write this file, or into this folder.")] = Path(".")
) -> None:
    """Copy a shipped recipe, to change it."""
    from ..commands.recipes import copy_recipe

    target = copy_recipe(name, to)
    typer.echo(f"{target}   edit it, then: zoedge finetune {target}")
