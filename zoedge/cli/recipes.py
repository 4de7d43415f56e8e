"""recipes ls | show | cp."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import app
from .completing import recipes as names

recipes = typer.Typer(no_args_is_help=True, help="The recipes that come with zoedge.")
Name = Annotated[str, typer.Argument(autocompletion=names)]
app.add_typer(recipes, name="recipes")


@recipes.command("ls")
def ls() -> None:
    """List them, with their first comment."""
    from ..recipe.reading import shipped

    for path in shipped():
        first = path.read_text().splitlines()[0]
        typer.echo(f"{path.stem:24} {first.lstrip('# ') if first.startswith('#') else ''}".rstrip())


@recipes.command("show")
def show(name: Name) -> None:
    """Print one."""
    from ..recipe.reading import find
    from ..recipe.strict_yaml import text_of

    typer.echo(text_of(find(name)), nl=False)


@recipes.command("cp")
def cp(name: Name, to: Annotated[Path, typer.Argument(help="a file or a folder")] = Path(".")) -> None:
    """Copy one, to change it."""
    from ..errors import UsageError
    from ..recipe.reading import find
    from ..recipe.strict_yaml import text_of

    source = find(name)
    text = text_of(source)
    target = to / source.name if to.is_dir() else to
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{target} is there already; name another file.") from None
    except OSError as e:
        raise UsageError(f"{target}: cannot write: {e.strerror}.") from None
    typer.echo(f"{target}   edit it, then: zoedge finetune {target}")
