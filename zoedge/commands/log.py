"""`zoedge log show | export | diff`: what a run's log holds."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..core.storage import write_durably
from ..core.types import Record
from ..errors import UsageError
from ..log.log import Log
from ..log.packed import AnyLog, pack_log
from ..run.folder import open_any_log

PIECE_SIZE = 1 << 20  # characters of CSV that are written at a time


def summarise_log(log: AnyLog) -> dict[str, Any]:
    """Return what a log's header and its length say."""
    header = log.header
    return {
        "format": "1.0",
        "run_id": (header.run_id or header.identity()).hex(),
        "seed": header.seed,
        "trained": header.elements,
        "steps": len(log),
        "hash_every": header.hash_every,
        "finished": log.state.end is not None,
        "fingerprint": log.fingerprint,
    }


def export_log(run: str, out: Path, packed: bool) -> tuple[int, int]:
    """Write a copy of a run's log, packed or as CSV; returns its bytes and its steps. UsageError: `out` exists."""
    log = open_any_log(run)
    if out.exists() or out.is_symlink():  # a link to nothing would be replaced
        raise UsageError(f"{out} is there already; name another file.")
    data: bytes | Iterator[bytes]
    if not packed:
        data = iterate_csv(log)
    elif isinstance(log, Log):
        data = pack_log(log)
    else:
        raise UsageError(f"{run} is packed already.")
    write_durably(out, data)
    return out.stat().st_size, len(log)


def iterate_csv(log: AnyLog) -> Iterator[bytes]:
    """Yield a log's steps as CSV, so many lines at a time that memory stays bounded."""
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(["step", "seq", "lr", "decay", "flags", "g", "losses"])
    for r in log:
        g, losses = " ".join(map(repr, r.g)), " ".join(map(repr, r.losses))
        rows.writerow([r.step, r.seq, r.lr, r.decay, r.flags, g, losses])
        if text.tell() > PIECE_SIZE:
            yield text.getvalue().encode()
            text.seek(0)
            text.truncate()
    yield text.getvalue().encode()


def iterate_differences(a: AnyLog, b: AnyLog) -> Iterator[tuple[Record, Record]]:
    """Yield the records of the same step in two logs where what is applied differs."""
    for one, two in zip(a, b):
        if (one.lr, one.g, one.flags, one.decay) != (two.lr, two.g, two.flags, two.decay):
            yield one, two
