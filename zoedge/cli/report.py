"""The command line of `zoedge report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import app
from .completing import complete_runs


@app.command()
def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="They are runs' folders or names. Two or more give a comparison.", autocompletion=complete_runs
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Write this file. Without it, report.html in the run's folder, or here."),
    ] = None,
) -> None:
    """Write one HTML file of a run, or of several beside one another, that opens anywhere and offline."""
    from ..commands.report import REPORT_FILE, write_report
    from ..errors import UsageError
    from ..run.folder import LOG_FILE, find_log

    logs = [find_log(run) for run in runs]
    if len(set(logs)) < len(logs):
        raise UsageError("The same run stands twice. Name each once.")
    if out is None:
        out = logs[0].with_name(REPORT_FILE) if len(logs) == 1 and logs[0].name == LOG_FILE else Path(REPORT_FILE)
    elif out.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"--out: '{out}' is not a .html file.")
    write_report(logs, out)
    typer.echo(f"{out}: {out.stat().st_size:,} bytes; open it in a browser")
