"""This module knows what lies in a run's folder, and which step of a run a user means.

runs/NAME/   run.zlog       the only checkpoint
             recipe.yaml    every setting, defaults included
             metrics.jsonl  for people and plots: training never reads it; the step `best` is chosen by it
             adapter/       the export
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core import storage
from ..core.storage import open_file
from ..errors import StorageError, UsageError, make_printable, suggest_nearest
from ..log.log import Log
from ..recipe.recipe import Recipe
from .identity import is_optimizer_log, recipe_from_header

if TYPE_CHECKING:
    from ..log.packed import AnyLog

# names in a run's folder
LOG_FILE = "run.zlog"
RECIPE_FILE = "recipe.yaml"
METRICS_FILE = "metrics.jsonl"
ADAPTER_FOLDER = "adapter"


def open_any_log(run: str) -> AnyLog:
    """Open the log of a run: raw, packed or shared. UsageError: there is none. DamagedError: it is not what was written."""
    from ..log.packed import MAGIC as PACKED  # here: it imports numpy, which `zoedge --help` does not need
    from ..log.packed import PackedLog
    from ..log.shared import MAGIC, SharedLog

    path = find_log(run)
    with os.fdopen(open_file(path), "rb") as file:  # a pipe would make us wait
        try:
            magic = file.read(len(MAGIC))
        except OSError as e:
            raise StorageError(f"{path}: cannot read the log: {e.strerror}.") from e
    return {PACKED: PackedLog, MAGIC: SharedLog}.get(magic, Log).open(path)


# -- folders


def find_log(run: str) -> Path:
    """Return the path of the log that a user means by a run's folder, a log's path, or a run's name under runs/."""
    for path in (Path(run), Path("runs") / run) if run else ():
        if path.is_dir() and (path / LOG_FILE).exists():
            return path / LOG_FILE
        if path.is_file():
            return path
    known = [path.parent.name for path in sorted(Path("runs").glob(f"*/{LOG_FILE}"))]
    way_out = suggest_nearest(run, known) or (f". Under runs/: {make_printable(', '.join(known))}." if known else ".")
    raise UsageError(f"No run '{make_printable(run)}': no such log, and no folder with a {LOG_FILE}{way_out}")


def run_folder(recipe: Recipe) -> Path:
    """Return the folder that a recipe's run goes to: output.dir, then its name."""
    return Path(recipe.output.dir) / recipe.name


def claim_folder(folder: Path) -> list[str]:
    """Make a run's folder, and prove that it and its log can be written, before anything slow begins.

    Returns:
        What the user should know of them, a sentence each.

    Raises:
        StorageError: the disk refuses. LockedError: another process writes the run. DamagedError: the log is damaged.
    """
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.close(storage.disk.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        storage.disk.unlink(probe)
        storage.disk.sync_directory(folder.parent)
    except OSError as e:
        raise StorageError(f"{folder}: cannot write there: {e.strerror}. Choose another output.dir.") from e
    messages = []
    if kind := storage.network_filesystem(folder):
        messages.append(
            f"{folder} is on a network file system ({kind}), where a lock may hold on one host alone: do not write one run "
            "from two hosts."
        )
    if os.path.lexists(folder / LOG_FILE):
        with Log.resume(folder / LOG_FILE) as log:
            if log.torn:
                messages.append(
                    f"the log ended in an unfinished write: its {log.torn:,} bytes were cut off and kept as "
                    f"{log.path.with_suffix('.torn')}; the run goes on from step {len(log):,}."
                )
    return messages


def append_metric(folder: Path, **fields: Any) -> None:
    """Append a line to metrics.jsonl. No state of the run is in it. StorageError: the disk refuses."""
    path, line = folder / METRICS_FILE, (json.dumps(fields) + "\n").encode()
    try:
        fd = storage.disk.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        with os.fdopen(fd, "rb") as file:
            # a last line that was cut by a kill or a full disk must not take the new one along
            if file.seek(0, os.SEEK_END) and os.pread(fd, 1, file.tell() - 1) != b"\n":
                line = b"\n" + line
            storage.write_all(fd, line, "")
    except OSError as e:
        raise StorageError(f"{path}: cannot write: {e.strerror}.") from e


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl that can be read, as tables; none if there is no such file."""
    lines = []
    if (folder / METRICS_FILE).is_file():
        for line in (folder / METRICS_FILE).read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                continue  # a line cut by a kill
            if isinstance(value, dict):
                lines.append(value)
    return lines


# -- which step


def validation_losses(folder: Path, log: AnyLog) -> dict[int, float]:
    """Return the validation loss of each step of a log that was evaluated, as metrics.jsonl has it; the latest counts.

    An evaluation notes the slot of its step's record, so that those of steps that a rewind dropped do not count.
    """
    losses: dict[int, float] = {}
    for line in read_metrics(folder):
        step, loss = line.get("step"), line.get("loss")
        if line.get("event") != "valid" or not isinstance(step, int) or not isinstance(loss, float):
            continue
        if 0 < step <= len(log) and math.isfinite(loss) and line.get("seq", log[step - 1].seq) == log[step - 1].seq:
            losses[step] = loss
    return dict(sorted(losses.items()))


def resolve_step(log: AnyLog, at: str | None) -> int:
    """Return how many steps of a log a user means.

    Args:
        at: a number; last; best (the step of the lowest validation loss in the metrics.jsonl beside the log); None: as the
            log's own recipe says, or of a shared log what it delivers.

    Raises:
        UsageError: the log has no such step, or no validation loss is noted.
    """
    steps, shared = len(log), log.delivers
    if at is None and shared is not None:
        return int(shared)
    at = at or ("last" if is_optimizer_log(log.header) else recipe_from_header(log.header, str(log.path)).eval.select)
    if at == "best":
        if not (losses := validation_losses(log.path.parent, log)):
            raise UsageError(
                f"{log.path}: no validation loss is noted beside it ({METRICS_FILE}), so no step is the best. Train with "
                f"data.valid, or name a step: --at last, or a number up to {steps:,}."
            )
        return min(losses, key=losses.__getitem__)
    if at == "last":
        return steps
    if at.isdecimal() and len(at) < 12 and int(at) <= steps:
        return int(at)
    raise UsageError(f"--at {make_printable(at)}: not last, best or a number of steps; the log has {steps:,}.")
