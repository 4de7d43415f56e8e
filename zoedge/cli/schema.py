"""The command lines of `zoedge schema` and `zoedge validate`: what a recipe may say, and whether one is right."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import app
from .arguments import OverridesArgument, RecipeArgument
from .completing import complete_keys


@app.command()
def schema(
    field: Annotated[
        str | None, typer.Option(help="Explain this key in words, such as rule.lr.", autocompletion=complete_keys)
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write this file. Without it, the schema is printed.")
    ] = None,
) -> None:
    """Print the JSON schema of a recipe, for editors.

    A recipe whose first line is `# yaml-language-server: $schema=FILE` is completed and checked while it is written.
    """
    from ..commands.schema import describe_recipe, write_schema

    text = describe_recipe(field)
    if out is None:
        typer.echo(text)
        return
    write_schema(out, text)
    typer.echo(f"{out}   the first line of a recipe that uses it: # yaml-language-server: $schema={out}")


@app.command()
def validate(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
) -> None:
    """Check a recipe, its rows and its model, without weights.

    Every problem is listed; nothing is fetched or written. Exit code 0, 2 (recipe) or 3 (data or model).
    """
    from ..commands.validate import validate_recipe

    typer.echo(f"ok: {validate_recipe(recipe, overrides)}")
