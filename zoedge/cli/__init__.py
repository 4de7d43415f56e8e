"""The command line. Each command is a few lines over the package; what it needs is imported when it runs, because
`zoedge --help` must answer without torch."""

from __future__ import annotations

import errno
import os
import signal
import sys

import typer

from ..errors import ZoedgeError, format_error, is_out_of_memory

app = typer.Typer(
    name="zoedge",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Fine-tune large language models where memory ends: forward passes only, checkpoints of kilobytes.",
)


def main() -> None:
    """The entry point: one sentence and an exit code for what can go wrong; tracebacks only with --debug."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # half-written files are taken away
    try:
        if code := app(
            standalone_mode=False, prog_name="zoedge"
        ):  # what typer.Exit was raised with comes back as a value
            sys.exit(code)
    except typer.Exit as e:
        sys.exit(e.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except ZoedgeError as e:
        if debug:
            raise
        print(f"zoedge: {format_error(e)}", file=sys.stderr)
        sys.exit(e.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(0)
    except OSError as e:
        if debug:
            raise
        what = f"{str(e.filename)[:200]}: " if e.filename is not None else ""
        print(f"zoedge: {format_error(what)}{e.strerror or format_error(e)}.", file=sys.stderr)
        sys.exit(2 if e.errno == errno.ENAMETOOLONG else 74)
    except Exception as e:
        usage = getattr(e, "format_message", None)  # click's own errors
        if debug and usage is None:
            raise
        if usage is not None:
            path = getattr(getattr(e, "ctx", None), "command_path", "")
            what = format_error(usage())
            more = f"{'' if what.endswith('.') else '.'} See: {path} --help" if path and "Usage:" not in what else ""
            print(f"zoedge: {what}{more}", file=sys.stderr)
            sys.exit(2)
        if is_out_of_memory(e):
            print(
                "zoedge: memory ended. Is the input what it should be? Less of it at a time, a smaller model, or more memory.",
                file=sys.stderr,
            )
            sys.exit(3)
        what = format_error(e).strip() or type(e).__name__
        print(
            f"zoedge: {type(e).__name__}: {what}\nThis is a bug. `--debug` shows where; please report it.",
            file=sys.stderr,
        )
        sys.exit(70)


from . import (  # noqa: E402, F401, I001 - the order of --help
    training,
    preview,
    estimate,
    sweep,
    report,
    runs,
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

if __name__ == "__main__":
    main()
