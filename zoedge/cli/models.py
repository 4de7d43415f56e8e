"""The command lines of generate, chat and quantize."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from . import app
from .arguments import AtOption, RunArgument
from .completing import complete_values

if TYPE_CHECKING:
    from ..run.trained import Trained


@app.command()
def generate(
    run: RunArgument,
    prompt: Annotated[str, typer.Option("-p", "--prompt", help="The model reads this text.")],
    tokens: Annotated[int, typer.Option(min=1, help="It answers with at most so many new tokens.")] = 40,
    free: Annotated[
        bool, typer.Option("--free", help="Print free text, also from a run that learnt to choose.")
    ] = False,
    compare_base: Annotated[bool, typer.Option("--compare-base", help="Print the base's answer beside it.")] = False,
    at: AtOption = None,
) -> None:
    """What the tuned model says next (greedy). A run that learnt to choose among options chooses among them: its loss
    read no other token, so that free text (--free) may have drifted."""
    from ..commands.chat import find_end
    from ..commands.generate import choose_option
    from ..run.trained import load_trained

    trained, *_ = load_trained(run, at)
    choose = bool(trained.recipe.task.labels) and not free
    end = "" if choose else find_end(trained)
    print_answers(
        trained,
        lambda: choose_option(trained, prompt) if choose else trained.base.generate(prompt, tokens, end=end),
        compare_base,
    )


@app.command()
def chat(
    run: RunArgument,
    tokens: Annotated[int, typer.Option(min=1, help="An answer has at most so many new tokens.")] = 200,
    compare_base: Annotated[bool, typer.Option("--compare-base", help="Print the base's answer before it.")] = False,
    at: AtOption = None,
) -> None:
    """Answer each line of standard input (greedy), until it ends or says /quit. A line is a user's turn in the chat
    template, or plain text where there is none; the lines before it are not remembered."""
    import sys

    from ..commands.chat import build_prompt
    from ..errors import DataError
    from ..run.trained import load_trained

    trained, *_ = load_trained(run, at)
    trained.base.require_causal()
    while line := read_line():
        if (text := line.strip()) == "/quit":
            break
        if not text:
            continue
        try:
            prompt, special, end = build_prompt(trained, text)
            print_answers(trained, lambda: trained.base.generate(prompt, tokens, special, end).strip(), compare_base)
        except DataError as e:
            print(f"zoedge: {e}", file=sys.stderr)


def read_line() -> str:
    """Return the next line of standard input with its line break, after a prompt for a person; '' where the input ends."""
    import sys

    from ..errors import DataError

    if sys.stdin.isatty():
        typer.echo("> ", nl=False)
    try:
        return sys.stdin.readline()
    except UnicodeDecodeError:
        raise DataError("What stands on standard input is not a text in UTF-8.") from None


def print_answers(trained: Trained, answer: Callable[[], str], compare_base: bool) -> None:
    """Print what the tuned model answers, and the base before it if asked."""
    from ..errors import UsageError

    if compare_base and trained.recipe.space.own_start:
        raise UsageError("--compare-base: all weights were trained, and the base's own are not held beside them.")
    if compare_base:
        typer.echo(f"base:  {answer()}")  # no point is held
    with trained.space.visit([lambda leaf: None]):
        text = answer()
    typer.echo(f"tuned: {text}" if compare_base else text)


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help="It is a folder, a packaged model, or a hub id.")],
    to: Annotated[
        str, typer.Option(help="Quantise to nf4, fp4 or int8.", autocompletion=complete_values("nf4", "fp4", "int8"))
    ] = "nf4",
    double_quant: Annotated[bool, typer.Option(help="Quantise the scales of a 4-bit base too.")] = True,
) -> None:
    """Make the pre-quantised cache of a model, so that the first run starts at once."""
    from ..commands.quantize import quantize_model

    folder, size = quantize_model(model, to, double_quant)
    typer.echo(f"{folder}: {size / 1e6:,.0f} MB")
