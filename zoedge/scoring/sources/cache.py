"""This module has the cache folder, and the drafts in it that become visible when they are complete."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...errors import DataError, StorageError

DRAFT_PREFIX = ".draft-"


def cache_folder(*parts: str) -> Path:
    """Return a folder of the cache, which is made if it is not there.

    The cache is $ZOEDGE_CACHE, else $XDG_CACHE_HOME/zoedge, else ~/.cache/zoedge. StorageError: it cannot be made.
    """
    home = os.environ.get("ZOEDGE_CACHE")
    root = Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zoedge"
    folder = root.joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise StorageError(f"{folder}: cannot make the cache folder: {e.strerror}. Set ZOEDGE_CACHE.") from e
    return folder


def print_progress(text: str) -> None:
    """Write a line about something slow to standard error."""
    print(f"zoedge: {text}", file=sys.stderr, flush=True)


def require_model_files(folder: Path) -> None:
    """Raise DataError if a folder, before it appears in the cache, lacks config.json, weights, or the tokenizer of a model."""
    if not (
        any(folder.glob("*.safetensors")) and all((folder / n).is_file() for n in ("config.json", "tokenizer.json"))
    ):
        raise DataError(
            f"{folder.name} would lack files in the cache, and was not made. Is the model's folder complete?"
        )


class DraftFolder(tempfile.TemporaryDirectory[str]):
    """A temporary folder of the cache, which this process holds a lock on.

    The folders of processes that were killed, whose locks are gone, are removed before.
    """

    def __init__(self, parent: Path):
        with locked(parent):  # no folder is swept between its making and its locking
            for path in parent.glob(f"{DRAFT_PREFIX}*"):
                if (fd := try_lock(path)) is not None:
                    shutil.rmtree(path, ignore_errors=True)
                    os.close(fd)
            super().__init__(dir=parent, prefix=DRAFT_PREFIX)
            self.lock = try_lock(Path(self.name))
        if self.lock is not None:
            weakref.finalize(self, os.close, self.lock)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, where its file system has locks of folders (NFS has none)."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def try_lock(folder: Path) -> int | None:
    """Lock a folder, and return the descriptor that holds the lock; None: another holds it, or it is gone."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd
