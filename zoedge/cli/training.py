"""finetune and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import app
from .completing import OverridesArgument, RecipeArgument, complete_runs

QuietOption = Annotated[bool, typer.Option("--quiet", help="errors alone")]
PlainOption = Annotated[bool, typer.Option("--plain", help="lines instead of the live panel")]
JsonOption = Annotated[bool, typer.Option("--json", help="one JSON object a line")]


def choose_display(quiet: bool, plain: bool, json: bool) -> str:
    return "json" if json else "quiet" if quiet else "plain" if plain else "auto"


@app.command()
def finetune(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    resume: Annotated[
        str, typer.Option(help="auto: go on where the run's log ends; never: refuse an existing run")
    ] = "auto",
    parent: Annotated[
        str | None,
        typer.Option("--from", help="RUN@STEP: begin with another run's first steps (a number, last or best)"),
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="the run's folder instead of output.dir/name")] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="check the recipe, print it with all defaults and what follows from them, and stop"
        ),
    ] = False,
    quiet: QuietOption = False,
    plain: PlainOption = False,
    json: JsonOption = False,
) -> None:
    """Train by forward passes only, as a recipe says."""
    from ..errors import UsageError
    from ..recipe.reading import read_recipe
    from ..recipe.recipe import dump_derived, dump_recipe
    from ..run.folder import run_folder
    from ..run.workers import is_follower

    if resume not in ("auto", "never"):
        raise UsageError(f"--resume: '{resume}' is not auto or never. To go on with a run: zoedge resume {resume}")
    checked = read_recipe(recipe, overrides)
    if dry_run:
        typer.echo(dump_recipe(checked) + dump_derived(checked), nl=False)
        return
    begin = parse_parent(parent) if parent and not is_follower() else None
    run_training(checked, run_dir or run_folder(checked), resume == "auto", choose_display(quiet, plain, json), begin)


@app.command()
def resume(
    run: Annotated[str, typer.Argument(help="a run's folder or name", autocompletion=complete_runs)],
    quiet: QuietOption = False,
    plain: PlainOption = False,
    json: JsonOption = False,
) -> None:
    """Go on with a run: replay its log, prove the states, then train on."""
    from ..commands.finetune import follow
    from ..log.log import Log
    from ..run.folder import find_log
    from ..run.identity import recipe_from_header
    from ..run.workers import is_follower

    if is_follower():
        return follow()
    path = find_log(run)
    with Log.open(path) as log:
        recipe = recipe_from_header(log.header, str(path))
    run_training(recipe, path.parent, True, choose_display(quiet, plain, json))


def parse_parent(text: str) -> Any:
    """The parent that RUN@STEP names."""
    from ..errors import UsageError
    from ..run.branch import Parent
    from ..run.folder import resolve_step
    from .logs import open_log

    run, at, step = text.rpartition("@")
    if not at:
        raise UsageError(f"--from: '{text}' is not RUN@STEP, such as runs/quickstart@500.")
    journal = open_log(run)
    return Parent(journal, resolve_step(journal, step))


def run_training(recipe: Any, folder: Path, resume: bool, how: str, parent: Any = None) -> None:
    from ..commands.finetune import finetune
    from ..run.display import make_display

    show = make_display(how)
    outcome = finetune(recipe, run_dir=folder, resume="auto" if resume else "never", display=show, parent=parent)
    if outcome is not None:  # of the other workers of a launch, worker 0 tells
        print_summary(outcome, show)


def print_summary(o: Any, show: Any) -> None:
    """What was reached, where it lies, and what to type next."""
    from ..commands.report import REPORT_FILE
    from ..run.display import Json, format_seconds
    from ..run.evaluate import format_scores

    if isinstance(show, Json):
        fields = {
            "folder": str(o.folder),
            "fingerprint": o.fingerprint,
            "log_bytes": o.size,
            "seconds": round(o.seconds, 1),
            "at": o.at,
            "better": o.better,
        }
        show.put("finished", **fields, before=o.before and vars(o.before), after=o.after and vars(o.after))
        return
    lines = [""]
    if o.after:
        lines += format_scores({"zero-shot": o.before, f"after {o.at:,} steps": o.after}, "held-out rows")
    lines += [
        "",
        f"log      {o.folder}/run.zlog   {o.size:,} bytes for {o.steps:,} steps",
        f"         fingerprint {o.fingerprint}",
    ]
    if o.at < o.steps:
        lines.append(f"chosen   step {o.at:,}, of the lowest validation loss")
    if o.better:
        lines.append(f"better   step {o.better:,} by the validation loss: zoedge export {o.folder} --at best")
    at = f" --at {o.at}" if o.at < o.steps else ""
    replay = f"  zoedge replay {o.folder}{at} -o rebuilt          # the trained weights again, from base and log"
    verify = f"  zoedge verify {o.folder} --replay"
    if o.adapter:
        lines.append(f"adapter  {o.adapter}")
        replay = f"  zoedge replay {o.folder}{at} -o rebuilt          # the adapter again, from the log alone"
        verify += f"{at} --adapter {o.adapter}"
    if (o.folder / REPORT_FILE).is_file():
        lines.append(f"report   {o.folder / REPORT_FILE}")
    lines += [
        f"time     {format_seconds(o.seconds)}",
        "",
        "next:",
        replay,
        verify,
        f'  zoedge generate {o.folder} -p "A film that made me smile. It was"',
        f"  zoedge export {o.folder}{at} --to merged --check",
        f"  zoedge report {o.folder}",
    ]
    show.say("\n".join(lines))
