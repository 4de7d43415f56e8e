"""The command lines of `zoedge finetune` and `zoedge resume`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import app
from .arguments import (
    JsonOption,
    OverridesArgument,
    PlainOption,
    QuietOption,
    RecipeArgument,
    RunFolderArgument,
    TrustOption,
)
from .completing import complete_parents, complete_values

ResumeOption = Annotated[
    str,
    typer.Option(
        help="With auto, an existing run goes on where its log ends; with never, it is refused.",
        autocompletion=complete_values("auto", "never"),
    ),
]
FromOption = Annotated[
    str | None,
    typer.Option(
        "--from",
        help="Begin with another run's first steps: RUN@STEP, where STEP is a number, last or best.",
        autocompletion=complete_parents,
    ),
]
RunDirOption = Annotated[Path | None, typer.Option(help="The run lies in this folder, instead of output.dir/name.")]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Check the recipe, print it with all defaults and what follows from them, and stop."
    ),
]


def choose_display(quiet: bool, plain: bool, json: bool) -> str:
    """Return the name of the display that the options ask for."""
    return "json" if json else "quiet" if quiet else "plain" if plain else "auto"


@app.command()
def finetune(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    resume: ResumeOption = "auto",
    parent: FromOption = None,
    run_dir: RunDirOption = None,
    dry_run: DryRunOption = False,
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
        typer.echo(f"Rows, reward and model were not read: `zoedge validate {recipe}` checks them.", err=True)
        return
    begin = parse_parent(parent) if parent and not is_follower() else None
    run_training(checked, run_dir or run_folder(checked), resume == "auto", choose_display(quiet, plain, json), begin)


@app.command()
def resume(
    run: RunFolderArgument,
    trust_code: TrustOption = False,
    quiet: QuietOption = False,
    plain: PlainOption = False,
    json: JsonOption = False,
) -> None:
    """Go on with a run: replay its log, prove the states, then train on."""
    from ..commands.finetune import follow
    from ..commands.resume import find_run
    from ..run.workers import is_follower

    if is_follower():
        return follow(trust_code=trust_code)
    recipe, folder = find_run(run, trust_code)
    run_training(recipe, folder, True, choose_display(quiet, plain, json))


def parse_parent(text: str) -> Any:
    """Return the parent that RUN@STEP names. UsageError: it is not RUN@STEP."""
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
    """Begin a run, or go on with it, and print what came of it. how: the name of the display."""
    from ..commands.finetune import finetune
    from ..run.display import make_display

    show = make_display(how)
    outcome = finetune(recipe, run_dir=folder, resume="auto" if resume else "never", display=show, parent=parent)
    if outcome is not None:  # of the workers of a launch, worker 0 alone prints
        print_summary(outcome, show)


def print_summary(outcome: Any, show: Any) -> None:
    """Print what was reached, where it lies, and what to type next: as text, or as one JSON object."""
    from ..run.display import Json

    if isinstance(show, Json):
        show.put("finished", **summarise(outcome))
    else:
        show.say("\n".join(["", *format_results(outcome), "", "next:", *format_next_commands(outcome)]))


def summarise(outcome: Any) -> dict[str, Any]:
    """Return the values of a finished run that --json prints."""
    return {
        "folder": str(outcome.folder),
        "fingerprint": outcome.fingerprint,
        "log_bytes": outcome.size,
        "seconds": round(outcome.seconds, 1),
        "at": outcome.at,
        "better": outcome.better,
        "before": outcome.before and vars(outcome.before),
        "closed_form": outcome.closed_form
        and {"passes": outcome.closed_form.passes, **vars(outcome.closed_form.score)},
        "after": outcome.after and vars(outcome.after),
    }


def name_scores(outcome: Any) -> dict[str, Any]:
    """Return the scores of the held-out rows by the names that the closing table gives them."""
    scores = {"zero-shot": outcome.before}
    if outcome.closed_form:
        scores["closed form"] = outcome.closed_form.score
    return scores | {f"after {outcome.at:,} steps": outcome.after}


def is_beaten(outcome: Any) -> bool:
    """Return whether a run that did not begin with the closed form ends above its loss."""
    closed_form = outcome.closed_form
    if not (closed_form and outcome.after) or closed_form.begins:
        return False
    return bool(closed_form.score.loss < outcome.after.loss)


def format_results(outcome: Any) -> list[str]:
    """Return the lines that say what a run reached, and where its files lie."""
    from ..commands.report import REPORT_FILE
    from ..run.display import format_seconds
    from ..run.evaluate import format_scores

    lines = []
    if outcome.after:
        lines += format_scores(name_scores(outcome), "held-out rows")
    lines += [
        "",
        f"log      {outcome.folder}/run.zlog   {outcome.size:,} bytes for {outcome.steps:,} steps",
        f"         fingerprint {outcome.fingerprint}",
    ]
    if outcome.chosen:
        lines.append(f"chosen   step {outcome.at:,}, {outcome.chosen}")
    if is_beaten(outcome):
        lines.append(
            "note     the closed form alone has a lower loss on these rows: space.start=probe begins a run with it"
        )
    if outcome.better:
        export = f"zoedge export {outcome.folder} --at best"
        lines.append(f"better   step {outcome.better:,} by the validation loss: {export}")
    if outcome.adapter:
        lines.append(f"adapter  {outcome.adapter}")
    if (outcome.folder / REPORT_FILE).is_file():
        lines.append(f"report   {outcome.folder / REPORT_FILE}")
    return [*lines, f"time     {format_seconds(outcome.seconds)}"]


def format_next_commands(outcome: Any) -> list[str]:
    """Return the commands that go on from a finished run."""
    folder, at = outcome.folder, f" --at {outcome.at}" if outcome.at < outcome.steps else ""
    if outcome.adapter:
        replay, verify = "the adapter again, from the log alone", f"{at} --adapter {outcome.adapter}"
    else:
        replay, verify = "the trained weights again, from base and log", ""
    return [
        f"  zoedge replay {folder}{at} -o rebuilt          # {replay}",
        f"  zoedge verify {folder} --replay{verify}",
        f'  zoedge generate {folder} -p "A film that made me smile. It was"',
        f"  zoedge export {folder}{at} --to merged --check",
        f"  zoedge report {folder}",
    ]
