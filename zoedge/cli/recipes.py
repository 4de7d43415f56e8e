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
    from ..recipe.reading import list_shipped

    for path in list_shipped():
        first = path.read_text().splitlines()[0]
        typer.echo(f"{path.stem:24} {first.lstrip('# ') if first.startswith('#') else ''}".rstrip())


@recipes_app.command("show")
def show(name: RecipeName) -> None:
    """Print a shipped recipe."""
    from ..recipe.reading import find_recipe
    from ..recipe.strict_yaml import read_text_file

    typer.echo(read_text_file(find_recipe(name)), nl=False)


@recipes_app.command("cp")
def cp(name: RecipeName, to: Annotated[Path, typer.Argument(help="a file or a folder")] = Path(".")) -> None:
    """Copy a shipped recipe, to change it."""
    from ..errors import UsageError
    from ..recipe.reading import find_recipe
    from ..recipe.strict_yaml import read_text_file

    source = find_recipe(name)
    text = read_text_file(source)
    target = to / source.name if to.is_dir() else to
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{target} is there already; name another file.") from None
    except OSError as e:
        raise UsageError(f"{target}: cannot write: {e.strerror}.") from None
    typer.echo(f"{target}   edit it, then: zoedge finetune {target}")
