"""The command line of `zoedge init`: from rows to a recipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from . import app
from .completing import complete_rows

SourceArgument = Annotated[
    str,
    typer.Argument(help="It is a file or folder of rows, a packaged text or a hub set.", autocompletion=complete_rows),
]
OutOption = Annotated[
    Path | None, typer.Option("-o", "--out", help="Write this file. Without it, NAME.yaml after the rows' file.")
]
ModelOption = Annotated[str, typer.Option(help="The base: a folder, a packaged model or a hub id.")]
LabelOption = Annotated[str | None, typer.Option(help="The column with the label. Without it, it is guessed.")]
PromptOption = Annotated[
    str | None,
    typer.Option(help="The prompt, such as '{text} Topic:'. Without it, it is made of the columns of texts."),
]
LookOption = Annotated[bool, typer.Option("--look", help="Load the model and score it before any training.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing, and take the guesses.")]


@app.command("init")
def init(
    source: SourceArgument,
    out: OutOption = None,
    model: ModelOption = "smollm2-135m-instruct",
    label: LabelOption = None,
    prompt: PromptOption = None,
    look: LookOption = False,
    yes: YesOption = False,
) -> None:
    """Write a recipe for your rows: task, prompt, options, splits and lengths are guessed, and shown."""
    from ..commands.init import draft_recipe
    from ..core.storage import write_new_text

    target = out or Path(f"{name_file(source)}.yaml")
    refuse_existing(target)
    draft = draft_recipe(source, model, label, prompt)
    if not yes and sys.stdin.isatty() and sys.stdout.isatty():
        draft = ask(draft, source, model, label, prompt)
    print_draft(draft)
    if look:
        print_look(draft)
    write_new_text(target, draft.dump(source))
    typer.echo(f"\n{target}   look at it, then: zoedge finetune {target}")


def name_file(source: str) -> str:
    """Return a name for the recipe: the rows' file's or folder's, or the hub set's."""
    import re

    name = Path(source.partition(":")[0]).name
    return re.sub(r"[^A-Za-z0-9._-]", "-", Path(name).stem if "." in name else name).lstrip("._-") or "recipe"


def refuse_existing(target: Path) -> None:
    """Raise UsageError if there is such a file already: nothing is overwritten, and no time is spent."""
    import os

    from ..errors import UsageError

    if os.path.lexists(target):
        raise UsageError(f"{target} is there already; name another file: -o FILE.yaml")


def ask(draft: Any, source: str, model: str, label: str | None, prompt: str | None) -> Any:
    """Ask about what was guessed, and return the draft with the answers; Enter takes a guess."""
    from ..commands.init import draft_recipe

    guess, task = draft.guess, draft.table["task"]
    typer.echo(f"{guess.task}: {guess.reason}.")
    if guess.task == "classify" and label is None:
        answer = typer.prompt("The column with the label", default=guess.label)
        if answer != guess.label:
            draft = draft_recipe(source, model, answer, prompt)
            task = draft.table["task"]
    if "prompt" in task and prompt is None:
        shown = task["prompt"].replace("\n", "\\n")
        answer = typer.prompt("The prompt (\\n is a line break)", default=shown)
        if answer != shown:
            draft = draft_recipe(source, model, label or draft.guess.label, answer.replace("\\n", "\n"))
    return draft


def print_draft(draft: Any) -> None:
    """Print three rows as the model will read them, with the tokens that are scored, and what the run will take."""
    from ..commands.init import predict_time
    from ..errors import ZoedgeError
    from ..run.display import format_seconds
    from .preview import format_rows, format_statistics

    for line in [*format_rows(draft.preview, False), *format_statistics(draft.preview)]:
        typer.echo(line)
    typer.echo("         [brackets] mark what is scored")
    try:
        typer.echo(
            f"time     about {format_seconds(predict_time(draft.recipe()))} in all, estimated from products timed here"
        )
    except ZoedgeError as e:
        typer.echo(f"time     not predicted: {e}")


def print_look(draft: Any) -> None:
    """Print what the base reaches before any training."""
    from ..commands.init import score_base
    from ..run.evaluate import format_scores

    typer.echo("\n".join(format_scores({"zero-shot": score_base(draft.recipe())}, "held-out rows")))
