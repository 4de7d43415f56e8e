"""replay, verify, repair and log show | export | diff: everything that needs a log and no model."""

from __future__ import annotations

import json as json_
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError, make_printable
from . import app
from .completing import complete_runs

log_app = typer.Typer(no_args_is_help=True, help="Look into a run's log.")
app.add_typer(log_app, name="log")
RunArgument = Annotated[
    str,
    typer.Argument(
        help="a run's folder or name, a .zlog, a packed .zpack, or a shared .zoe", autocompletion=complete_runs
    ),
]
BaseOption = Annotated[
    str | None,
    typer.Option(
        help="where the base is, for a space that moves its weights (default: as the recipe says); of an optimiser's log, "
        "the .safetensors file of the values it began with"
    ),
]
AT_HELP = "after how many steps: last, best (the lowest validation loss) or a number; default: as eval.select says"
AtOption = Annotated[str | None, typer.Option(help=AT_HELP)]


def open_log(run: str) -> Any:
    """The log of a run: raw, packed or shared."""
    from ..run.folder import open_any_log

    return open_any_log(run)


@app.command()
def replay(
    run: RunArgument,
    at: Annotated[str | None, typer.Option("--at", "--to-step", help=AT_HELP)] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="the adapter's folder")] = Path("rebuilt"),
    device: Annotated[str, typer.Option(help="cpu | cuda")] = "cpu",
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
    against: Annotated[str | None, typer.Option(help="a recipe: compare base, data and batches too")] = None,
    replay: Annotated[bool, typer.Option("--replay", help="replay and compare every logged state")] = False,
    adapter: Annotated[Path | None, typer.Option(help="an exported adapter: compare it bit for bit")] = None,
    at: Annotated[str | None, typer.Option(help=f"of --adapter: {AT_HELP}")] = None,
    base: BaseOption = None,
) -> None:
    """Prove that a log is whole, and that it gives what it says."""
    from ..commands import verify as commands_verify
    from ..core import engine
    from ..log.log import Log
    from ..recipe.reading import read_recipe
    from ..run import folder as run_folder
    from ..run import replay as run_replay

    journal = open_log(run)
    if isinstance(journal, Log):
        print_level("1 log", commands_verify.check_integrity(journal))
    else:
        print_level(
            "1 log", [f"{len(journal):,} steps, packed: its digest is right", f"fingerprint {journal.fingerprint}"]
        )
    if against:
        print_level("2 inputs", commands_verify.check_inputs(journal, read_recipe(against)))
    if replay or adapter:
        made, said = commands_verify.check_states(journal, base=base)
        print_level("3 replay", said)
        if adapter:
            if (steps := run_folder.resolve_step(journal, at)) < len(journal):
                made = run_replay.build_replay_run(journal, base=base)
                for _ in engine.play(made, steps):
                    pass
            print_level("4 adapter", commands_verify.check_adapter(made, journal, adapter, base))
    typer.echo("verified")


@app.command()
def repair(
    run: Annotated[str, typer.Argument(help="a run's folder or name, or a .zlog", autocompletion=complete_runs)],
) -> None:
    """Mend a damaged log, or cut it where its damage begins; a copy of it as it was stays beside it."""
    from ..log.repair import repair
    from ..run.folder import find_log

    path = find_log(run)
    for line in repair(path):
        typer.echo(line)
    typer.echo(f"next: zoedge verify {run} --replay, then zoedge resume {run}")


def print_level(level: str, lines: list[str]) -> None:
    for line in lines:
        typer.echo(f"{level:10} {line}")
        level = ""


@log_app.command("show")
def show(
    run: RunArgument,
    last: Annotated[int, typer.Option("-n", min=0, help="how many of the last steps")] = 10,
    json: Annotated[bool, typer.Option("--json", help="the header and every step, one JSON object a line")] = False,
) -> None:
    """The header and the last steps."""
    journal = open_log(run)
    h = journal.header
    about = {
        "format": "1.0",
        "run_id": (h.run_id or h.identity()).hex(),
        "seed": h.seed,
        "trained": h.elements,
        "steps": len(journal),
        "hash_every": h.hash_every,
        "finished": journal.state.end is not None,
        "fingerprint": journal.fingerprint,
    }
    if json:
        typer.echo(json_.dumps({**about, **h.about}))
        for record in journal:
            typer.echo(json_.dumps(record._asdict()))
        return
    for key, value in about.items():
        typer.echo(f"{key:12} {value}")
    for name in ("recipe", "base", "tokenizer", "data", "manifest", "initial", "selftest"):
        typer.echo(f"{name:12} sha256 {getattr(h, name).hex()[:16]}..")
    typer.echo(f"\n{'step':>7} {'seq':>7} {'lr':>10} {'g':>12}  losses")
    for r in list(journal)[-last:] if last else []:
        losses = " ".join(f"{x:.5f}" for x in r.losses)
        said = "".join(f"  {word}" for i, word in enumerate(("skipped", "clipped", "split")) if r.flags >> i & 1)
        typer.echo(f"{r.step:7} {r.seq:7} {r.lr:10.3e} {r.g[0]:12.5f}  {losses}{said}")


@log_app.command("export")
def export_log(
    run: RunArgument,
    out: Annotated[Path, typer.Option("-o", "--out", help="the file")],
    packed: Annotated[
        bool, typer.Option("--packed", help="a few bytes a step, replays to the same bits; default: CSV")
    ] = False,
) -> None:
    """A copy for sharing (--packed) or for a spreadsheet (CSV)."""
    import csv
    import io

    from ..core.storage import write_durably
    from ..log.log import Log
    from ..log.packed import pack_log

    journal = open_log(run)
    if out.exists() or out.is_symlink():  # a link to nothing would be replaced
        raise UsageError(f"{out} is there already; name another file.")
    if packed:
        if not isinstance(journal, Log):
            raise UsageError(f"{run} is packed already.")
        data = pack_log(journal)
    else:
        text = io.StringIO()
        rows = csv.writer(text)
        rows.writerow(["step", "seq", "lr", "decay", "flags", "g", "losses"])
        for r in journal:
            rows.writerow(
                [r.step, r.seq, r.lr, r.decay, r.flags, " ".join(map(repr, r.g)), " ".join(map(repr, r.losses))]
            )
        data = text.getvalue().encode()
    write_durably(out, data)
    typer.echo(f"{out}: {len(data):,} bytes, {len(data) / max(1, len(journal)):.2f} a step")


@log_app.command("diff")
def diff(a: RunArgument, b: RunArgument) -> None:
    """Where two runs part: headers, then the first step that differs."""
    from ..run.identity import identity_differences

    one, two = open_log(a), open_log(b)
    for what in identity_differences(one.header, two.header):
        typer.echo(f"header: {make_printable(what, 1000)}")
    for r, s in zip(one, two):
        if (r.lr, r.g, r.flags, r.decay) != (s.lr, s.g, s.flags, s.decay):
            typer.echo(f"step {r.step}: lr {r.lr} g {r.g}  |  lr {s.lr} g {s.g}")
            raise typer.Exit(1)
    if len(one) != len(two):
        typer.echo(f"{len(one):,} and {len(two):,} steps, equal up to the shorter")
        raise typer.Exit(1)
    typer.echo(f"{len(one):,} equal steps")
