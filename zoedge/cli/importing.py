"""The command line of `zoedge import-config`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import app
from .completing import complete_values, complete_yaml_files

FileArgument = Annotated[
    Path, typer.Argument(help="It is another tool's configuration, YAML or JSON.", autocompletion=complete_yaml_files)
]
OutOption = Annotated[
    Path | None,
    typer.Option("-o", "--out", help="Write the recipe to this file. Without it, the recipe is printed."),
]
ToolOption = Annotated[
    str | None,
    typer.Option(
        "--from",
        help="The tool: mlx-lm, axolotl, llama-factory, torchtune, litgpt, trl or unsloth. Without it, the keys tell.",
        autocompletion=complete_values("mlx-lm", "axolotl", "llama-factory", "torchtune", "litgpt", "trl", "unsloth"),
    ),
]


@app.command("import-config")
def import_config(file: FileArgument, out: OutOption = None, tool: ToolOption = None) -> None:
    """Write another tool's configuration as a recipe.

    It reads those of mlx-lm, axolotl, LLaMA-Factory, torchtune, litgpt, trl and unsloth. What means another thing here, or
    nothing, is listed with its reason; what trains for another goal is refused.
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
