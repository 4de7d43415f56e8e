"""This package is the command line. Each command is a few lines over the package, and imports what it needs when it runs.

So `zoedge --help` answers without torch.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from typing import Annotated, Any, Protocol, runtime_checkable

import typer

from ..errors import ZoedgeError, format_error, is_out_of_memory, make_printable
from .examples import EXAMPLES, FIRST_HOUR, add_examples, list_commands
from .hints import suggest_override

app = typer.Typer(
    name="zoedge",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def print_version(asked: bool) -> None:
    """Print the version and stop, where --version is given."""
    if asked:
        from importlib.metadata import version

        typer.echo(f"zoedge {version('zoedge')}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", help="Print the version and stop.", callback=print_version, is_eager=True)
]


@app.callback(invoke_without_command=True)
def show_first_hour(context: typer.Context, version: VersionOption = False) -> None:
    """Fine-tune large language models where memory ends: forward passes only, checkpoints of kilobytes."""
    if context.invoked_subcommand is not None:
        return
    listed = dict(list_commands(app))
    first = [name for name in FIRST_HOUR if name in listed]
    typer.echo("Fine-tune large language models where memory ends: forward passes only, checkpoints of kilobytes.")
    typer.echo("\nThe first hour:")
    for name in first:
        typer.echo(f"  {EXAMPLES[name]}\n      {listed[name]}")
    typer.echo("\nThe rest:")
    for name, text in listed.items():
        if name not in first:
            typer.echo(f"  {name:14} {text}")
    typer.echo(
        "\n`zoedge COMMAND --help` has every option and an example. `zoedge recipes ls` lists recipes to begin with."
    )


@runtime_checkable
class UsageMessage(Protocol):
    """One of click's own errors; typer has click inside, or beside it, by its version."""

    def format_message(self) -> str: ...


@runtime_checkable
class CommandMessage(Protocol):
    """One of click's errors that may know the command that was typed."""

    ctx: Any


def main() -> None:
    """Run the command line. What goes wrong becomes one sentence and an exit code; --debug shows the traceback."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as on standard error: a file's name may be no text
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # half-written files are taken away
    try:
        if code := app(standalone_mode=False, prog_name="zoedge"):  # typer.Exit's code comes back as a value
            sys.exit(code)
    except typer.Exit as e:
        sys.exit(e.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(0)
    except Exception as e:
        usage = describe_usage_error(e)
        if debug and usage is None:
            raise
        sentence, code = (usage, 2) if usage is not None else describe_error(e)
        print(f"zoedge: {sentence}", file=sys.stderr)
        sys.exit(code)


def describe_usage_error(error: Exception) -> str | None:
    """Return the sentence of one of click's own errors, which know the command that was typed. None: another error."""
    if not isinstance(error, UsageMessage):
        return None
    path = error.ctx.command_path if isinstance(error, CommandMessage) and error.ctx else ""
    what = format_error(error.format_message())
    if override := suggest_override(what, sys.argv):
        return override
    hint = f"{'' if what.endswith(('.', '?')) else '.'} See: {path} --help" if path and "Usage:" not in what else ""
    return f"{what}{hint}"


def describe_error(error: Exception) -> tuple[str, int]:
    """Return the sentence of an error, and the exit code."""
    if isinstance(error, ZoedgeError):
        return format_error(error), error.exit_code
    if is_out_of_memory(error):
        what = "no thread can be started, or memory ended" if "thread" in str(error) else "memory ended"
        advice = (
            "Is the input what it should be? Less of it at a time, a smaller model, or more memory (ulimit -v, -u)."
        )
        return f"{what}. {advice}", 3
    if isinstance(error, UnicodeEncodeError) and "surrogates" in error.reason:
        name = make_printable(error.object, 200)
        return f"'{name}' is not UTF-8, and a recipe or a log could not hold it. Rename the file or folder.", 2
    if isinstance(error, OSError):
        where = f"{str(error.filename)[:200]}: " if error.filename is not None else ""
        code = 2 if error.errno == errno.ENAMETOOLONG else 74
        return f"{format_error(where)}{error.strerror or format_error(error)}.", code
    what = format_error(error).strip() or type(error).__name__
    return f"{type(error).__name__}: {what}\nThis is a bug. `--debug` shows where; please report it.", 70


from . import (  # noqa: E402, F401, I001 - the order of --help
    init,
    training,
    preview,
    estimate,
    sweep,
    report,
    runs,
    cache,
    logs,
    share,
    export,
    evaluate,
    models,
    doctor,
    recipes,
    schema,
    importing,
    lab,
)

add_examples(app)

if __name__ == "__main__":
    main()
