"""`zoedge runs` lists the runs in a folder, with what each has come to, and removes runs."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..core.storage import open_file
from ..errors import LockedError, StorageError, UsageError, ZoedgeError, make_printable
from ..log.header import MAGIC
from ..log.log import Log
from ..run import folder as run_folder
from ..run import identity
from ..run.evaluate import Score
from ..run.folder import LOG_FILE

MAX_DEPTH = 2  # a sweep's runs lie in a folder of its own


@dataclass
class RunSummary:
    """A run in a folder, and what it has come to."""

    name: str
    state: str  # ended | stopped | running | damaged
    at: float  # when its log was last written, in seconds since 1970
    bytes: int  # of all files in its folder
    model: str = ""
    task: str = ""
    steps: int = 0  # in the log
    of: int = 0  # steps that the recipe asks for
    score: Score | None = None  # the newest of held-out rows
    fingerprint: str = ""
    wrong: str = ""  # what is damaged


def list_runs(folder: Path) -> list[RunSummary]:
    """Return the runs below a folder, the newest first. UsageError: there is no such folder."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder. Name the one that runs are in: --dir")
    runs = [summarize_run(path, path.parent.relative_to(folder).as_posix()) for path in find_logs(folder)]
    return sorted(runs, key=lambda run: (-run.at, run.name))


def find_logs(folder: Path, deep: int = MAX_DEPTH) -> Iterator[Path]:
    """Yield the logs in a folder's folders, down to `deep` levels. Symlinks are not followed."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            if os.path.lexists(path / LOG_FILE):
                yield path / LOG_FILE
            elif deep > 1:
                yield from find_logs(path, deep - 1)


def summarize_run(path: Path, name: str) -> RunSummary:
    """Return what the log at `path` and its folder say of a run."""
    summary = RunSummary(name, "damaged", path.lstat().st_mtime, count_bytes(path.parent))
    try:
        with Log.open(path) as log:
            identity.check_states_known(log)
            recipe = identity.recipe_from_header(log.header, str(path))
            summary.steps, summary.of, summary.fingerprint = len(log), recipe.train.steps, log.fingerprint
            summary.model, summary.task = recipe.model.source, type(recipe.task).__name__.lower()
            summary.state = "ended" if log.state.end is not None else "stopped"
    except ZoedgeError as e:
        summary.wrong = str(e)
        return summary
    summary.score = find_last_score(path.parent)
    if is_locked(path):
        summary.state = "running"
    return summary


def find_last_score(folder: Path) -> Score | None:
    """Return the newest score that was noted: of the end if there is one, else of validation rows, else of the start."""
    from .report.facts import parse_score

    last: dict[str, Score] = {}
    for line in run_folder.read_metrics(folder):
        event = line.get("event")
        if event in ("before", "valid", "after") and (score := parse_score(line)):
            last[event] = score
    return last.get("after") or last.get("valid") or last.get("before")


def is_locked(path: Path) -> bool:
    """Return whether a process is writing the log.

    It takes a shared lock for a moment; an exclusive one could make another `runs` believe that a run is being written.
    """
    fd = open_file(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def count_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder. A symlink counts as itself, not as what it names."""
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:  # a run may write and rename files meanwhile
                continue
    return total


# -- removing


def find_removable(run: str) -> Path:
    """Return the folder that a user means, if it is a run of ours and nothing but a run.

    UsageError: it is not a run, is a symlink, or holds other runs. StorageError: its log cannot be opened.
    """
    folder = next((p for p in (Path(run), Path("runs") / run) if run and os.path.lexists(p)), None)
    if folder is None:
        raise UsageError(
            f"No run '{make_printable(run)}': no such folder, here or under runs/. `zoedge runs ls` lists them."
        )
    if folder.is_symlink():
        raise UsageError(f"{folder} is a symlink to {make_printable(os.readlink(folder))}. Name the folder itself.")
    if not folder.is_dir() or not os.path.lexists(folder / LOG_FILE):
        raise UsageError(f"{folder} is not a run: there is no {LOG_FILE} in it. Nothing was removed.")
    with os.fdopen(open_file(folder / LOG_FILE), "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise UsageError(f"{folder / LOG_FILE} is not a zoedge log. Nothing was removed; delete {folder} yourself.")
    if inside := [path.parent.name for path in find_logs(folder)]:
        raise UsageError(f"{folder} holds other runs ({make_printable(', '.join(inside))}). Name each of them.")
    if folder.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise UsageError(f"{folder} contains the current folder. Leave it first: cd ..")
    return folder


def remove_run(folder: Path) -> int:
    """Remove a run's folder, and return how many bytes it had.

    Symlinks in the folder are removed, and what they name is kept. The log is removed last, so that a removal which is cut
    short leaves a run that can be removed again.

    Raises:
        LockedError: a process is writing the run.
        StorageError: the disk refuses.
    """
    fd = open_file(folder / LOG_FILE)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LockedError(f"{folder}: a zoedge process is writing this run. Wait for it, or stop it.") from None
        total = count_bytes(folder)
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOG_FILE:
                path.unlink()
        (folder / LOG_FILE).unlink()
        folder.rmdir()
    except OSError as e:
        raise StorageError(f"{folder}: cannot be removed: {e.strerror}: {e.filename}.") from e
    finally:
        os.close(fd)
    return total


def format_age(at: float, now: float | None = None) -> str:
    """Return how long ago a time was, in the largest unit that fits: 3 d, 5 h, 12 min."""
    seconds = max(0.0, (time.time() if now is None else now) - at)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"
