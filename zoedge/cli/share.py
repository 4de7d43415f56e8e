"""The command lines of `zoedge pack` and `zoedge apply`: a fine-tune in one small file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import app
from .arguments import AtOption, BaseOption, DeviceOption, RawLogArgument
from .completing import complete_shared


@app.command()
def pack(
    run: RawLogArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="Write this file, such as film.zoe.")],
    at: AtOption = None,
    base: BaseOption = None,
) -> None:
    """Write a fine-tune as one file of kilobytes: `apply` makes the same adapter of it wherever the base is."""
    from ..commands.pack import pack_run
    from ..core.storage import write_durably
    from ..errors import UsageError

    if out.exists() or out.is_symlink():  # a link to nothing would be replaced
        raise UsageError(f"{out} is there already; name another file.")
    raw, log, notes = pack_run(run, at, base)
    write_durably(out, raw)
    for note in notes:
        typer.echo(f"note: {note}")
    typer.echo(f"{out}: {len(raw):,} bytes, {len(log):,} steps; fingerprint {log.fingerprint}")
    typer.echo(f"next, where the base is: zoedge apply {out} --base MODEL -o DIR")


@app.command()
def apply(
    file: Annotated[Path, typer.Argument(help="It is a .zoe that `zoedge pack` made.", autocompletion=complete_shared)],
    out: Annotated[Path, typer.Option("-o", "--out", help="Write the adapter into this folder.")] = Path("applied"),
    base: Annotated[
        str | None, typer.Option(help="The base: a folder, a packaged model or a hub id. Without it, the recipe says.")
    ] = None,
    device: DeviceOption = "cpu",
) -> None:
    """The adapter of a shared fine-tune, proven: the base is the one that was trained on, and the state the same bits."""
    from ..commands.apply import apply_shared

    done = apply_shared(file, out, base, device)
    typer.echo(f"base     {done.base}: the one that was trained on (sha256 {done.of.log.header.base.hex()[:16]}..)")
    typer.echo(
        f"proven   {done.of.steps:,} steps replayed, fingerprint {done.of.fingerprint}, state {done.of.state[:16]}: as packed"
    )
    typer.echo(f"adapter  {done.folder}")
