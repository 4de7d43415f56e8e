"""The command line of `zoedge eval`."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import Annotated, Any

import typer

from ..commands.generate import rebuild_run
from . import app
from .arguments import AtOption
from .logs import open_log


@app.command("eval")
def evaluate_run(
    run: Annotated[str, typer.Argument(help="a run's folder or name, a log; with --tasks also an adapter's folder")],
    data: Annotated[str | None, typer.Option(help="a file or packaged text; default: the run's test rows")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="at most so many rows, of each task")] = None,
    at: AtOption = None,
    tasks: Annotated[
        str | None, typer.Option(help="lm-eval's, separated by commas, such as hellaswag,arc_easy (the extra eval)")
    ] = None,
    include: Annotated[Path | None, typer.Option(help="of --tasks: a folder of task files of your own")] = None,
    compare_base: Annotated[
        bool, typer.Option("--compare-base", help="of --tasks: the base's results beside them")
    ] = False,
    base: Annotated[str | None, typer.Option(help="of --tasks and an adapter: where its base is")] = None,
    json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """What a run's task measures on labelled rows (accuracy raw and calibrated, F1, loss), with zero-shot beside it; with
    --tasks, what lm-eval measures on its own."""
    from dataclasses import asdict

    from ..errors import UsageError

    for option, given, one in (("--data", data, False), ("--include", include, True), ("--base", base, True)):
        if given is not None and (tasks is not None) != one:
            raise UsageError(f"{option} goes {'with' if one else 'without'} --tasks.")
    if compare_base and tasks is None:
        raise UsageError("--compare-base goes with --tasks: without it, zero-shot stands beside the result anyway.")
    if tasks is not None:
        evaluate_tasks(run, tasks, limit, at, include, compare_base, base, json)
        return
    from ..core import engine
    from ..errors import DataError
    from ..run import evaluate, folder, identity, setup
    from ..scoring.rows.sets import in_content_order, load_rows

    journal = open_log(run)
    steps = folder.resolve_step(journal, at)
    recipe = identity.recipe_from_header(journal.header, run)
    bench = setup.Bench.build(recipe)
    identity.check_same_base(journal.header, bench.header(), run)
    examples = bench.texts.test or bench.texts.valid
    if data:
        rows, _ = load_rows(data, "data", recipe.data)
        examples, _ = recipe.task.encode(
            in_content_order(rows, recipe.task.fields()),
            bench.base.tokenizer,
            bench.limit,
            recipe.data.on_overflow,
        )
    if examples is None:
        raise DataError(f"{run} has no test rows: name some with --data FILE.")
    examples = examples.head(limit) if limit else examples

    def score(space: Any) -> Any:
        return evaluate.evaluate(space, bench.task, bench.base, examples, recipe.eval.calibrate)

    found = {"zero-shot": score(evaluate.EmptySpace())}
    for _ in engine.play(bench.run(journal), steps):
        pass
    found[f"after {steps:,} steps"] = score(bench.space)
    if json:
        typer.echo(json_.dumps({name: asdict(s) for name, s in found.items()}))
        return
    typer.echo("\n".join(evaluate.format_scores(found, "rows")))


def evaluate_tasks(
    run: str,
    tasks: str,
    limit: int | None,
    at: str | None,
    include: Path | None,
    compare: bool,
    source: str | None,
    json: bool,
) -> None:
    """`eval --tasks`: of a run, or of an exported adapter."""
    from ..commands import lm_eval
    from ..commands.export.folder import MARKER_FILE
    from ..errors import UsageError

    names, manager = lm_eval.find_tasks(tasks, include)
    if (Path(run) / MARKER_FILE).is_file():
        if at is not None:
            raise UsageError("--at: an adapter is of one step. Name its run.")
        base, space = lm_eval.attach_adapter(Path(run), source)
    else:
        if source is not None:
            raise UsageError("--base: of an adapter. A run's base is where its recipe says.")
        bench, *_ = rebuild_run(run, at)
        base, space = bench.base, bench.space
        if compare and bench.recipe.space.own_start:
            raise UsageError("--compare-base: all weights were trained, and the base's own are not held beside them.")
    found = {"base": lm_eval.run_tasks(base, None, names, manager, limit)} if compare else {}
    found["tuned"] = lm_eval.run_tasks(base, space, names, manager, limit)
    if json:
        typer.echo(json_.dumps({name: some["results"] for name, some in found.items()}, default=str))
        return
    for name, some in found.items():
        typer.echo(f"{name}:" if compare else "", nl=compare)
        typer.echo(lm_eval.format_results(some))
