"""The command line of `zoedge import-config`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import app


@app.command("import-config")
def import_config(
    file: Annotated[Path, typer.Argument(help="a configuration of mlx-lm, axolotl or LLaMA-Factory, YAML or JSON")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="the recipe's file; default: print it")] = None,
    tool: Annotated[
        str | None, typer.Option("--from", help="mlx-lm | axolotl | llama-factory; default: told by its keys")
    ] = None,
) -> None:
    """Another tool's configuration as a recipe.

    What is another thing here, or nothing, is listed with its reason.
    """
    from ..commands.import_config import convert_config, dump_imported, read_config, recognise_tool
    from ..core.storage import write_new_text

    table = read_config(file)
    imported = convert_config(table, tool or recognise_tool(table, str(file)), str(file))
    text, report = dump_imported(imported, str(file)), "\n".join(imported.report())
    if out is None:
        typer.echo(text, nl=False)
        typer.echo(report, err=True)
        return
    write_new_text(out, text)
    typer.echo(f"{report}\n\n{out}   look at it, then: zoedge validate {out}")
