"""The command lines of replay, verify, repair and log show | export | diff, which need a log and no model."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core.canonical import null_nonfinite
from ..errors import make_printable
from . import app
from .arguments import AT_HELP, BaseOption, DeviceOption, RawLogArgument, RunArgument
from .completing import complete_recipes, complete_values

log_app = typer.Typer(no_args_is_help=True, help="Look into a run's log.")
app.add_typer(log_app, name="log")
AtStepOption = Annotated[
    str | None, typer.Option("--at", "--to-step", help=AT_HELP, autocompletion=complete_values("last", "best"))
]
AgainstOption = Annotated[
    str | None,
    typer.Option(help="Compare base, data and batches with this recipe too.", autocompletion=complete_recipes),
]
ReplayOption = Annotated[bool, typer.Option("--replay", help="Replay the log and compare every state that it has.")]
AdapterOption = Annotated[Path | None, typer.Option(help="Compare this exported adapter bit for bit.")]
AdapterStepOption = Annotated[
    str | None, typer.Option(help=f"With --adapter: {AT_HELP}", autocompletion=complete_values("last", "best"))
]


def open_log(run: str) -> Any:
    """Return the log of a run, whether it is raw, packed or shared."""
    from ..run.folder import open_any_log

    return open_any_log(run)


@app.command()
def replay(
    run: RunArgument,
    at: AtStepOption = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Write the adapter into this folder.")] = Path("rebuilt"),
    device: DeviceOption = "cpu",
    base: BaseOption = None,
) -> None:
    """Rebuild the adapter from the log alone: no model, no data, no forward pass. A space without an adapter: the
    whole model, from its base and the log."""
    from ..commands import replay as commands_replay

    done = commands_replay.replay(open_log(run), at, base=base, device=device)
    folder = done.save(out)
    rate = done.steps / max(done.seconds, 1e-9)
    typer.echo(f"{done.steps:,} steps at {rate:,.0f} a second; state {done.state[:16]}; {done.kind} {folder}")


@app.command()
def verify(
    run: RunArgument,
    against: AgainstOption = None,
    replay: ReplayOption = False,
    adapter: AdapterOption = None,
    at: AdapterStepOption = None,
    base: BaseOption = None,
) -> None:
    """Prove that a log is whole, and that it gives what it says."""
    from ..commands import verify as commands_verify
    from ..log.log import Log
    from ..recipe.reading import read_recipe
    from ..run.folder import describe_delivery

    journal = open_log(run)
    packed = [f"{len(journal):,} steps, packed: its digest is right", f"fingerprint {journal.fingerprint}"]
    print_level("1 log", commands_verify.check_integrity(journal) if isinstance(journal, Log) else packed)
    if delivery := describe_delivery(journal):
        print_level("", [delivery])
    if against:
        print_level("2 inputs", commands_verify.check_inputs(journal, read_recipe(against)))
    if replay or adapter:
        replayed, lines = commands_verify.check_states(journal, base=base)
        print_level("3 replay", lines)
        if adapter:
            replayed = commands_verify.cut_replay(journal, replayed, at, base)
            print_level("4 adapter", commands_verify.check_adapter(replayed, journal, adapter, base))
    typer.echo("verified")


@app.command()
def repair(
    run: RawLogArgument,
) -> None:
    """Mend a damaged log, or cut it where its damage begins; a copy of it as it was stays beside it."""
    from ..commands.repair import repair_run

    for line in repair_run(run):
        typer.echo(line)
    typer.echo(f"next: zoedge verify {run} --replay, then zoedge resume {run}")


def print_level(level: str, lines: list[str]) -> None:
    """Print the lines of one level of proof, the first one behind its name."""
    for line in lines:
        typer.echo(f"{level:10} {line}")
        level = ""


@log_app.command("show")
def show(
    run: RunArgument,
    last: Annotated[int, typer.Option("-n", min=0, help="So many of the last steps are printed.")] = 10,
    json: Annotated[
        bool, typer.Option("--json", help="Print the header and every step, one JSON object a line.")
    ] = False,
) -> None:
    """Print a log's header and its last steps."""
    from ..commands.log import summarise_log

    journal = open_log(run)
    summary = summarise_log(journal)
    if json:
        typer.echo(json_.dumps({**summary, **journal.header.about}))
        for record in journal:
            typer.echo(json_.dumps(null_nonfinite(record._asdict())))
        return
    for key, value in summary.items():
        typer.echo(f"{key:12} {value}")
    for name in ("recipe", "base", "tokenizer", "data", "manifest", "initial", "selftest"):
        typer.echo(f"{name:12} sha256 {vars(journal.header)[name].hex()[:16]}..")
    typer.echo(f"\n{'step':>7} {'seq':>7} {'lr':>10} {'g':>12}  losses")
    for step in range(max(0, len(journal) - last), len(journal)):
        typer.echo(format_record(journal[step]))


def format_record(record: Any) -> str:
    """Return a step's line: its numbers, its losses, and the names of its flags."""
    losses = " ".join(f"{x:.5f}" for x in record.losses)
    flags = "".join(f"  {word}" for bit, word in enumerate(("skipped", "clipped", "split")) if record.flags >> bit & 1)
    return f"{record.step:7} {record.seq:7} {record.lr:10.3e} {record.g[0]:12.5f}  {losses}{flags}"


@log_app.command("export")
def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="Write this file.")],
    packed: Annotated[
        bool,
        typer.Option(
            "--packed", help="Write a few bytes a step, which replay to the same bits. Without it, write CSV."
        ),
    ] = False,
) -> None:
    """Write a copy of a log for sharing (--packed) or for a spreadsheet (CSV)."""
    from ..commands.log import export_log

    size, steps = export_log(run, out, packed)
    typer.echo(f"{out}: {size:,} bytes, {size / max(1, steps):.2f} a step")


@log_app.command("diff")
def diff(a: RunArgument, b: RunArgument) -> None:
    """Print where two runs part: what differs in their headers, then the first step that differs."""
    from ..commands.log import iterate_differences
    from ..run.identity import identity_differences

    one, two = open_log(a), open_log(b)
    for what in identity_differences(one.header, two.header):
        typer.echo(f"header: {make_printable(what, 1000)}")
    for r, s in iterate_differences(one, two):
        typer.echo(f"step {r.step}: lr {r.lr} g {r.g}  |  lr {s.lr} g {s.g}")
        raise typer.Exit(1)
    if len(one) != len(two):
        typer.echo(f"{len(one):,} and {len(two):,} steps, equal up to the shorter")
        raise typer.Exit(1)
    typer.echo(f"{len(one):,} equal steps")
