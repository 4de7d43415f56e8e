"""The command line of `zoedge eval`."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import Annotated

import typer

from ..core.canonical import null_nonfinite
from . import app
from .arguments import AtOption, TrustOption
from .completing import complete_runs

RunOrAdapterArgument = Annotated[
    str,
    typer.Argument(
        help="It is a run's folder or name, a log, or with --tasks an adapter's folder.", autocompletion=complete_runs
    ),
]
DataOption = Annotated[
    str | None, typer.Option(help="Score this file or packaged text. Without it, the run's test rows.")
]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Score at most so many rows, of each task.")]
TasksOption = Annotated[
    str | None,
    typer.Option(help="Run these tasks of lm-eval, separated by commas, such as hellaswag,arc_easy (the extra eval)."),
]
IncludeOption = Annotated[
    Path | None, typer.Option(help="With --tasks, also read task files of your own from this folder.")
]
CompareOption = Annotated[
    bool, typer.Option("--compare-base", help="With --tasks, print the base's results beside them.")
]
AdapterBaseOption = Annotated[str | None, typer.Option(help="With --tasks and an adapter, its base lies here.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command("eval")
def evaluate(
    run: RunOrAdapterArgument,
    data: DataOption = None,
    limit: LimitOption = None,
    at: AtOption = None,
    tasks: TasksOption = None,
    include: IncludeOption = None,
    compare_base: CompareOption = False,
    base: AdapterBaseOption = None,
    trust_code: TrustOption = False,
    json: JsonOption = False,
) -> None:
    """What a run's task measures on labelled rows (accuracy raw and calibrated, F1, loss), with zero-shot beside it; with
    --tasks, what lm-eval measures on its own."""
    check_options(tasks, data, include, base, compare_base)
    if tasks is None:
        print_scores(run, data, limit, at, trust_code, json)
        return
    from ..commands import lm_eval

    print_task_results(lm_eval.evaluate_tasks(run, tasks, limit, at, include, compare_base, base), json)


def check_options(
    tasks: str | None, data: str | None, include: Path | None, base: str | None, compare_base: bool
) -> None:
    """Raise UsageError where options do not go together."""
    from ..errors import UsageError

    for option, given, with_tasks in (("--data", data, False), ("--include", include, True), ("--base", base, True)):
        if given is not None and (tasks is not None) != with_tasks:
            raise UsageError(f"{option} goes {'with' if with_tasks else 'without'} --tasks.")
    if compare_base and tasks is None:
        raise UsageError("--compare-base goes with --tasks: without it, zero-shot stands beside the result anyway.")


def print_scores(run: str, data: str | None, limit: int | None, at: str | None, trust_code: bool, json: bool) -> None:
    """Print what the run's own task measures."""
    from dataclasses import asdict

    from ..commands.eval import evaluate_run
    from ..run.evaluate import format_scores

    scores, changes = evaluate_run(run, data, limit, at, trust_code)
    for sentence in changes:
        typer.echo(f"warning: {sentence}", err=True)
    if json:
        typer.echo(json_.dumps(null_nonfinite({name: asdict(score) for name, score in scores.items()})))
        return
    typer.echo("\n".join(format_scores(scores, "rows")))


def print_task_results(results: dict[str, dict[str, object]], json: bool) -> None:
    """Print what lm-eval measured: of the base, if it was asked for, and of the trained model."""
    from ..commands import lm_eval

    if json:
        typer.echo(json_.dumps({name: table["results"] for name, table in results.items()}, default=str))
        return
    for name, table in results.items():
        typer.echo(f"{name}:" if len(results) > 1 else "", nl=len(results) > 1)
        typer.echo(lm_eval.format_results(table))
