"""export, eval, generate, chat, quantize and doctor: everything that loads a model."""

from __future__ import annotations

import json as json_
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from . import app
from .logs import At, Run, opened


def rebuilt(run: str, at: str | None) -> tuple[Any, Any, int]:
    """(bench, log, steps) of a run: the base loaded anew, the space moved to where it is after so many steps."""
    from ..core import engine
    from ..run import setup

    journal = opened(run)
    steps = setup.step_of(journal, at)
    recipe = setup.recipe_of(journal.header, run)
    bench = setup.Bench.build(recipe)
    setup.same_base(journal.header, bench.header(), run)
    for _ in engine.play(bench.run(journal), steps):
        pass
    return bench, journal, steps


@app.command()
def export(
    run: Run,
    to: Annotated[str, typer.Option(help="peft | merged | gguf-lora")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="the folder, of gguf-lora the file; default: beside the log")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="of a merged model: fp16 | fp32 | bf16; default: fp16, or as all weights are trained"),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="load it in a fresh process and compare logits, of gguf-lora weights")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="write it although most of the update is lost in rounding")
    ] = False,
    at: At = None,
) -> None:
    """The trained model for other programs: a PEFT adapter, merged weights, or llama.cpp's adapter file."""
    from ..commands.export import folder as export_folder
    from ..commands.export import gguf
    from ..errors import UsageError

    if to not in ("peft", "merged", "gguf-lora") or dtype not in (None, "fp16", "fp32", "bf16"):
        raise UsageError(f"--to is peft, merged or gguf-lora, --dtype is fp16, fp32 or bf16; not '{to}', '{dtype}'.")
    bench, journal, steps = rebuilt(run, at)
    folder = out or journal.path.parent / {"peft": "adapter", "merged": "merged", "gguf-lora": "adapter.gguf"}[to]
    if to == "peft":
        export_folder.peft(bench.run(journal), journal, bench.recipe, folder, bench.base.path, steps)
        typer.echo(f"adapter {folder}")
    elif to == "gguf-lora":
        gguf.written(bench.space, journal, bench.recipe, bench.base.model.config, folder, steps)
        typer.echo(f"adapter {folder}")
    else:
        report = export_folder.merged(bench.recipe, bench.space, folder, dtype, force, log=journal, steps=steps)
        typer.echo(f"merged {folder}\n{report}")
    if check and to == "gguf-lora":
        typer.echo(f"fresh process: largest difference of weights {gguf.checked(folder, bench):.3g}")
    elif check:
        typer.echo(f"fresh process: largest difference of logits {export_folder.check(to, folder, bench):.3g}")


@app.command("eval")
def eval_(
    run: Annotated[str, typer.Argument(help="a run's folder or name, a log; with --tasks also an adapter's folder")],
    data: Annotated[str | None, typer.Option(help="a file or packaged text; default: the run's test rows")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="at most so many rows, of each task")] = None,
    at: At = None,
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
        harnessed(run, tasks, limit, at, include, compare_base, base, json)
        return
    from ..core import engine
    from ..errors import DataError
    from ..run import evaluate, setup
    from ..scoring.rows.sets import mixed, rows_of

    journal = opened(run)
    steps = setup.step_of(journal, at)
    recipe = setup.recipe_of(journal.header, run)
    bench = setup.Bench.build(recipe)
    setup.same_base(journal.header, bench.header(), run)
    examples = bench.texts.test or bench.texts.valid
    if data:
        rows, _ = rows_of(data, "data", recipe.data)
        examples, _ = recipe.task.encode(
            mixed(rows, recipe.task.fields()),
            bench.base.tokenizer,
            bench.limit,
            recipe.data.on_overflow,
        )
    if examples is None:
        raise DataError(f"{run} has no test rows: name some with --data FILE.")
    examples = examples.head(limit) if limit else examples

    def score(space: Any) -> Any:
        return evaluate.evaluate(space, bench.task, bench.base, examples, recipe.eval.calibrate)

    found = {"zero-shot": score(evaluate.Bare())}
    for _ in engine.play(bench.run(journal), steps):
        pass
    found[f"after {steps:,} steps"] = score(bench.space)
    if json:
        typer.echo(json_.dumps({name: asdict(s) for name, s in found.items()}))
        return
    typer.echo("\n".join(evaluate.table(found, "rows")))


def harnessed(
    run: str, tasks: str, limit: int | None, at: str | None, include: Path | None, compare: bool, source: str | None,
    json: bool,
) -> None:  # fmt: skip
    """`eval --tasks`: of a run, or of an exported adapter."""
    from ..commands import lm_eval
    from ..commands.export.folder import MARKER
    from ..errors import UsageError

    names, manager = lm_eval.known(tasks, include)
    if (Path(run) / MARKER).is_file():
        if at is not None:
            raise UsageError("--at: an adapter is of one step. Name its run.")
        base, space = lm_eval.adapter(Path(run), source)
    else:
        if source is not None:
            raise UsageError("--base: of an adapter. A run's base is where its recipe says.")
        bench, *_ = rebuilt(run, at)
        base, space = bench.base, bench.space
        if compare and getattr(bench.recipe.space, "own_start", False):
            raise UsageError("--compare-base: all weights were trained, and the base's own are not held beside them.")
    found = {"base": lm_eval.run(base, None, names, manager, limit)} if compare else {}
    found["tuned"] = lm_eval.run(base, space, names, manager, limit)
    if json:
        typer.echo(json_.dumps({name: some["results"] for name, some in found.items()}, default=str))
        return
    for name, some in found.items():
        typer.echo(f"{name}:" if compare else "", nl=compare)
        typer.echo(lm_eval.shown(some))


@app.command()
def generate(
    run: Run,
    prompt: Annotated[str, typer.Option("-p", "--prompt")],
    tokens: Annotated[int, typer.Option(min=1, help="at most so many new tokens")] = 40,
    free: Annotated[bool, typer.Option("--free", help="free text, also from a run that learnt to choose")] = False,
    compare_base: Annotated[bool, typer.Option("--compare-base", help="the base's answer beside it")] = False,
    at: At = None,
) -> None:
    """What the tuned model says next (greedy). A run that learnt to choose among options chooses among them: its loss
    read no other token, so that free text (--free) may have drifted."""
    bench, *_ = rebuilt(run, at)
    choose = hasattr(bench.recipe.task, "options") and not free
    say(bench, lambda: chosen(bench, prompt) if choose else bench.base.generate(prompt, tokens), compare_base)


@app.command()
def chat(
    run: Run,
    tokens: Annotated[int, typer.Option(min=1, help="at most so many new tokens an answer")] = 200,
    compare_base: Annotated[bool, typer.Option("--compare-base", help="the base's answer before it")] = False,
    at: At = None,
) -> None:
    """Answer each line of standard input (greedy), until it ends or says /quit. A line is a user's turn in the chat
    template, or plain text where there is none; the lines before it are not remembered."""
    import sys

    from ..errors import DataError

    bench, *_ = rebuilt(run, at)
    bench.base.must_continue()
    while line := asked():
        if (text := line.strip()) == "/quit":
            break
        if not text:
            continue
        try:
            prompt, plain = turn(bench, text)
            say(bench, lambda: bench.base.generate(prompt, tokens, special=plain).strip(), compare_base)
        except DataError as e:
            print(f"zoedge: {e}", file=sys.stderr)


def asked() -> str:
    """The next line of standard input with its end, after a sign to whoever types; '' at the end."""
    import sys

    from ..errors import DataError

    if sys.stdin.isatty():
        typer.echo("> ", nl=False)
    try:
        return sys.stdin.readline()
    except UnicodeDecodeError:
        raise DataError("What stands on standard input is not a text in UTF-8.") from None


def turn(bench: Any, text: str) -> tuple[str, bool]:
    """(the prompt that asks for an answer to a text, whether it is plain). A run that learnt to chat keeps its format."""
    from ..scoring.tasks.chat import Chat, question

    task, tokenizer = bench.recipe.task, bench.base.tokenizer
    own = Chat() if isinstance(tokenizer.chat_template, str) else None
    form = task if isinstance(task, Chat) else own
    return (text, True) if form is None else (question(form.source(tokenizer), text, tokenizer), False)


def say(bench: Any, answer: Callable[[], str], compare_base: bool) -> None:
    """Print what the tuned model answers, and the base before it if asked."""
    from ..errors import UsageError

    if compare_base and getattr(bench.recipe.space, "own_start", False):
        raise UsageError("--compare-base: all weights were trained, and the base's own are not held beside them.")
    if compare_base:
        typer.echo(f"base:  {answer()}")  # no point is held
    with bench.space.visit([lambda leaf: None]):
        text = answer()
    typer.echo(f"tuned: {text}" if compare_base else text)


def chosen(bench: Any, prompt: str) -> str:
    """The most likely option after a prompt, and the probability of each. A mask is put there where the model fills one."""
    from dataclasses import replace

    from ..scoring.rows.sets import Row

    mask = getattr(bench.recipe.task, "head", "CausalLM") == "MaskedLM"
    task = replace(bench.recipe.task, prompt="{prompt}{mask}." if mask else "{prompt}", label="label")
    row = Row("the prompt", {"prompt": prompt, "label": next(iter(task.options))})
    examples, _ = task.encode([row], bench.base.tokenizer, bench.limit, "error")
    shares = bench.task.outputs(bench.base, examples.collate([0]), 1)[0, 0].softmax(-1).tolist()
    ranked = sorted(zip(shares, task.options.values()), reverse=True)
    return f"{prompt}{ranked[0][1]}   ({', '.join(f'{word.strip()} {100 * share:.1f} %' for share, word in ranked)})"


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help="a folder, a packaged model, or a hub id")],
    to: Annotated[str, typer.Option(help="nf4 | fp4 | int8")] = "nf4",
    double_quant: bool = True,
) -> None:
    """Make the pre-quantised cache of a model, so that the first run starts at once."""
    from ..errors import UsageError
    from ..recipe.check import Model
    from ..scoring.models.loading import prepare

    if to not in ("nf4", "fp4", "int8"):
        raise UsageError(f"--to: '{to}' is not nf4, fp4 or int8.")
    folder, _ = prepare(Model(source=model, quantization=to, double_quant=double_quant))
    size = sum(p.stat().st_size for p in folder.iterdir())
    typer.echo(f"{folder}: {size / 1e6:,.0f} MB")


@app.command()
def doctor(
    json: Annotated[bool, typer.Option("--json")] = False,
    fix_hints: Annotated[bool, typer.Option("--fix-hints", help="what to type against what is in the way")] = False,
) -> None:
    """Versions, processor, memory, disk, cache, and a self-test of the arithmetic that replay rests on."""
    from ..commands.doctor.doctor import advice, examine

    report, well = examine()
    told = advice(report, well) if fix_hints else []
    if json:
        typer.echo(json_.dumps({**report, "well": well, **({"hints": told} if fix_hints else {})}))
    else:
        for key, value in report.items():
            typer.echo(f"{key:14} {value}")
        typer.echo("all well" if well else "something is wrong: see above")
        for what, how in told:
            typer.echo(f"\n{what}\n  {how}")
        if fix_hints and not told:
            typer.echo("nothing is in the way")
    raise typer.Exit(0 if well else 8)
