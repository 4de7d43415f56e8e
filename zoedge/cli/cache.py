"""The command lines of `zoedge cache ls | rm`."""

from __future__ import annotations

import json as json_
import sys
from typing import Annotated

import typer

from . import app
from .arguments import JsonOption
from .runs import format_table

cache_app = typer.Typer(no_args_is_help=True, help="What is kept between runs: list it, remove some.")
app.add_typer(cache_app, name="cache")
TABLE_HEAD = ("name", "what", "size", "used")
NUMBER_COLUMNS = {2, 3}


@cache_app.command("ls")
def ls(json: JsonOption = False) -> None:
    """List what the cache holds: lower layers' outputs, quantised bases, packaged models and texts."""
    from ..commands.cache import list_cache
    from ..commands.report.words import format_bytes
    from ..commands.runs import format_age
    from ..scoring.sources.cache import cache_folder

    entries = list_cache()
    if json:
        for entry in entries:
            typer.echo(json_.dumps({**vars(entry), "path": str(entry.path)}))
        return
    rows = [(entry.name, entry.what, format_bytes(entry.bytes), format_age(entry.used)) for entry in entries]
    for line in format_table([TABLE_HEAD, *rows], NUMBER_COLUMNS) if rows else ():
        typer.echo(line)
    typer.echo(f"in all {format_bytes(sum(entry.bytes for entry in entries))} in {cache_folder()}")


@cache_app.command("rm")
def rm(
    name: Annotated[
        list[str], typer.Argument(help="The names, as `zoedge cache ls` shows them, or a kind, such as trunk.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="It does not ask first.")] = False,
) -> None:
    """Remove something from the cache. It is made again, or fetched again, when a run needs it."""
    from ..commands.cache import find_entries, remove_entry
    from ..commands.report.words import format_bytes
    from ..errors import UsageError

    entries = find_entries(name)
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("`zoedge cache rm` asks first, and here is nobody to ask: add --yes.")
        for entry in entries:
            typer.echo(f"{entry.name}: {format_bytes(entry.bytes)}, {entry.what}")
        typer.confirm(f"Remove {'it' if len(entries) == 1 else f'these {len(entries)}'}?", abort=True)
    for entry in entries:
        typer.echo(f"removed {entry.name}: {remove_entry(entry):,} bytes")
