"""The command line of `zoedge export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import app
from .arguments import AtOption, RunArgument
from .completing import complete_values

KindOption = Annotated[
    str,
    typer.Option(
        help="Write peft (an adapter), merged (whole weights) or gguf-lora (llama.cpp's adapter).",
        autocompletion=complete_values("peft", "merged", "gguf-lora"),
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option("-o", "--out", help="Write into this folder, of gguf-lora this file. Without it, beside the log."),
]
TypeOption = Annotated[
    str | None,
    typer.Option(
        help="A merged model has this type: fp16, fp32 or bf16. Without it, fp16, or the type of the trained weights.",
        autocompletion=complete_values("fp16", "fp32", "bf16"),
    ),
]
CheckOption = Annotated[
    bool, typer.Option("--check", help="Load it in a fresh process and compare logits, of gguf-lora weights.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Write it although most of the update is lost in rounding.")]


@app.command()
def export(
    run: RunArgument,
    to: KindOption,
    out: OutOption = None,
    dtype: TypeOption = None,
    check: CheckOption = False,
    force: ForceOption = False,
    at: AtOption = None,
) -> None:
    """The trained model for other programs: a PEFT adapter, merged weights, or llama.cpp's adapter file."""
    from ..commands.export.export import export_run

    done = export_run(run, to, out, dtype=dtype, force=force, check=check, at=at)
    typer.echo(f"merged {done.path}\n{done.merge}" if done.merge else f"adapter {done.path}")
    if done.difference is not None:
        what = "weights" if to == "gguf-lora" else "logits"
        typer.echo(f"fresh process: largest difference of {what} {done.difference:.3g}")
