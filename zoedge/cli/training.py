"""finetune and resume."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from . import app

Quiet = Annotated[bool, typer.Option("--quiet", help="errors alone")]
Plain = Annotated[bool, typer.Option("--plain", help="lines instead of the live panel")]
Json = Annotated[bool, typer.Option("--json", help="one JSON object a line")]


def style(quiet: bool, plain: bool, json: bool) -> str:
    return "json" if json else "quiet" if quiet else "plain" if plain else "auto"


@app.command()
def finetune(
    recipe: Annotated[str, typer.Argument(help="a .yaml file, or the name of a shipped recipe")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, such as rule.lr=1e-3", metavar="[KEY=VALUE]...")
    ] = None,
    resume: Annotated[
        str, typer.Option(help="auto: go on where the run's log ends; never: refuse an existing run")
    ] = "auto",
    parent: Annotated[
        str | None,
        typer.Option("--from", help="RUN@STEP: begin with another run's first steps (a number, last or best)"),
    ] = None,
    run_dir: Annotated[Path | None, typer.Option(help="the run's folder instead of output.dir/name")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check the recipe, print it with all defaults, and stop")
    ] = False,
    quiet: Quiet = False,
    plain: Plain = False,
    json: Json = False,
) -> None:
    """Train by forward passes only, as a recipe says."""
    from ..errors import UsageError
    from ..recipe import dump, read
    from ..runs import folder_of

    if resume not in ("auto", "never"):
        raise UsageError(f"--resume: '{resume}' is not auto or never. To go on with a run: zoedge resume {resume}")
    checked = read(recipe, overrides)
    if dry_run:
        typer.echo(dump(checked), nl=False)
        return
    go(checked, run_dir or folder_of(checked), resume == "auto", style(quiet, plain, json), parent)


@app.command()
def resume(
    run: Annotated[str, typer.Argument(help="a run's folder or name")],
    quiet: Quiet = False,
    plain: Plain = False,
    json: Json = False,
) -> None:
    """Go on with a run: replay its log, prove the states, then train on."""
    from ..log import Log
    from ..runs import log_of, recipe_of

    if follows():
        return follow(None)
    path = log_of(run)
    with Log.open(path) as log:
        recipe = recipe_of(log.header, str(path))
    go(recipe, path.parent, True, style(quiet, plain, json))


def branched(text: str) -> Any:
    """The parent that RUN@STEP names."""
    from ..branch import Parent
    from ..errors import UsageError
    from ..runs import step_of
    from .logs import opened

    run, at, step = text.rpartition("@")
    if not at:
        raise UsageError(f"--from: '{text}' is not RUN@STEP, such as runs/quickstart@500.")
    journal = opened(run)
    return Parent(journal, step_of(journal, step))


def go(recipe: Any, folder: Path, resume: bool, how: str, parent: str | None = None) -> None:
    from ..display import display
    from ..train import train

    if follows():
        return follow(recipe)
    show = display(how)
    try:
        outcome = train(recipe, folder, show, resume, branched(parent) if parent else None, workers(recipe))
    finally:
        show.close()
    summary(outcome, show)


def launched() -> bool:
    """Has a launcher (accelerate launch, torchrun) started this process as one of several?"""
    return os.environ.get("WORLD_SIZE", "1") not in ("", "1")


def follows() -> bool:
    return launched() and os.environ.get("RANK", "0") != "0"


def workers(recipe: Any) -> Any:
    """The processes that share the run's steps; None: this is the only one."""
    if not launched():
        return None
    import torch

    from ..workers import Workers

    cuda = torch.cuda.is_available() and (recipe is None or recipe.model.device != "cpu")
    return Workers(recipe and recipe.train.timeout, cuda)


def follow(recipe: Any) -> None:
    """Take a share of worker 0's steps; what it learnt so far comes as its log. recipe: None, the log's own."""
    from tempfile import TemporaryDirectory

    from ..display import Quiet
    from ..log import Log
    from ..runs import LOG, recipe_of
    from ..storage import write_durably
    from ..train import train

    team = workers(recipe)
    with TemporaryDirectory(prefix="zoedge-") as scratch:
        path = Path(scratch, LOG)
        if recipe is None:
            if not (data := team.share(None)):
                return
            write_durably(path, data)
            with Log.open(path) as log:
                recipe = recipe_of(log.header, "worker 0's log")
        train(recipe, path.parent, Quiet(), True, None, team)


def summary(o: Any, show: Any) -> None:
    """What was reached, where it lies, and what to type next."""
    from ..display import Json, clock
    from ..evaluate import table

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
        lines += table({"zero-shot": o.before, f"after {o.at:,} steps": o.after}, "held-out rows")
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
    lines += [
        f"time     {clock(o.seconds)}",
        "",
        "next:",
        replay,
        verify,
        f'  zoedge generate {o.folder} -p "A film that made me smile. It was"',
        f"  zoedge export {o.folder}{at} --to merged --check",
    ]
    show.say("\n".join(lines))
