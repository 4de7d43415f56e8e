"""The runs in a folder: what each has come to, and how one is removed."""

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
    """A run. state: ended | stopped | running | damaged. at: when its log was last written, seconds since 1970.

    score: the last one noted, of held-out rows. bytes: of all files in its folder. wrong: what is damaged.
    """

    name: str
    state: str
    at: float
    bytes: int
    model: str = ""
    task: str = ""
    steps: int = 0
    of: int = 0
    score: Score | None = None
    fingerprint: str = ""
    wrong: str = ""


def list_runs(folder: Path) -> list[RunSummary]:
    """The runs below a folder, the newest first. UsageError: no such folder."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder. Name the one that runs are in: --dir")
    found = [summarize_run(path, path.parent.relative_to(folder).as_posix()) for path in find_logs(folder)]
    return sorted(found, key=lambda x: (-x.at, x.name))


def find_logs(folder: Path, deep: int = MAX_DEPTH) -> Iterator[Path]:
    """The logs in a folder's folders. Symlinks are not followed."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and not path.name.startswith("."):
            if os.path.lexists(path / LOG_FILE):
                yield path / LOG_FILE
            elif deep > 1:
                yield from find_logs(path, deep - 1)


def summarize_run(path: Path, name: str) -> RunSummary:
    status = path.lstat()
    found = RunSummary(name, "damaged", status.st_mtime, count_bytes(path.parent))
    try:
        with Log.open(path) as log:
            recipe = identity.recipe_from_header(log.header, str(path))
            found.steps, found.of, found.fingerprint = len(log), recipe.train.steps, log.fingerprint
            found.model, found.task = recipe.model.source, type(recipe.task).__name__.lower()
            found.state = "ended" if log.state.end is not None else "stopped"
    except ZoedgeError as e:
        found.wrong = str(e)
        return found
    found.score = find_last_score(path.parent)
    if is_locked(path):
        found.state = "running"
    return found


def find_last_score(folder: Path) -> Score | None:
    """The newest score noted of a run: after it, else on validation rows; of one that has not begun to learn, before."""
    from .report.facts import parse_score

    best: tuple[int, Score] | None = None
    for line in run_folder.read_metrics(folder):
        rank = (
            ("before", "valid", "after").index(event)
            if (event := line.get("event")) in ("before", "valid", "after")
            else -1
        )
        if rank >= 0 and (score := parse_score(line)) and (best is None or rank >= best[0]):
            best = rank, score
    return best and best[1]


def is_locked(path: Path) -> bool:
    """Whether a process is writing the log. A shared lock, for the blink of an eye: an own one would look like a run."""
    fd = open_file(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def count_bytes(folder: Path) -> int:
    """Bytes of the files below a folder; of a symlink, its own."""
    total = 0
    for here, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(here, name)).st_size
            except FileNotFoundError:  # a run writes and renames meanwhile
                continue
    return total


# -- removing


def find_removable(run: str) -> Path:
    """The folder that a user means, if it is a run of ours and nothing but a run.

    UsageError: it is none, a symlink, or holds other runs. StorageError: its log cannot be opened.
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
        raise UsageError(f"{folder} is where you are. Go elsewhere first: cd ..")
    return folder


def remove_run(folder: Path) -> int:
    """Remove a run's folder; how many bytes that were. LockedError: a process is writing it. StorageError: the disk.

    Symlinks in it are removed, and what they name is not. The log goes last: a removal cut short is still a run.
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
    """How long ago, in its largest unit."""
    seconds = max(0.0, (time.time() if now is None else now) - at)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"
