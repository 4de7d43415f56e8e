"""The command line of `zoedge export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..commands.generate import rebuild_run
from . import app
from .arguments import AtOption, RunArgument


@app.command()
def export(
    run: RunArgument,
    to: Annotated[str, typer.Option(help="peft | merged | gguf-lora")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="the folder, of gguf-lora the file; default: beside the log")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="of a merged model: fp16 | fp32 | bf16; default: fp16, or as all weights are trained"),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="load it in a fresh process and compare logits, of gguf-lora weights")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="write it although most of the update is lost in rounding")
    ] = False,
    at: AtOption = None,
) -> None:
    """The trained model for other programs: a PEFT adapter, merged weights, or llama.cpp's adapter file."""
    from ..commands.export import check as export_check
    from ..commands.export import gguf, merged, peft
    from ..errors import UsageError

    if to not in ("peft", "merged", "gguf-lora") or dtype not in (None, "fp16", "fp32", "bf16"):
        raise UsageError(f"--to is peft, merged or gguf-lora, --dtype is fp16, fp32 or bf16; not '{to}', '{dtype}'.")
    bench, journal, steps = rebuild_run(run, at)
    folder = out or journal.path.parent / {"peft": "adapter", "merged": "merged", "gguf-lora": "adapter.gguf"}[to]
    if to == "peft":
        peft.write_peft(bench.run(journal), journal, bench.recipe, folder, bench.base.path, steps)
        typer.echo(f"adapter {folder}")
    elif to == "gguf-lora":
        gguf.write_gguf(bench.space, journal, bench.recipe, bench.base.model.config, folder, steps)
        typer.echo(f"adapter {folder}")
    else:
        report = merged.write_merged(bench.recipe, bench.space, folder, dtype, force, log=journal, steps=steps)
        typer.echo(f"merged {folder}\n{report}")
    if check and to == "gguf-lora":
        typer.echo(f"fresh process: largest difference of weights {export_check.check_gguf(folder, bench):.3g}")
    elif check:
        typer.echo(f"fresh process: largest difference of logits {export_check.check_export(to, folder, bench):.3g}")
