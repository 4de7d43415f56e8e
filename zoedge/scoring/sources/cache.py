"""The cache folder, and files that are whole or absent in it."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ...errors import StorageError, make_printable


def cache_folder(*parts: str) -> Path:
    """A folder of the cache: $ZOEDGE_CACHE, else $XDG_CACHE_HOME/zoedge, else ~/.cache/zoedge."""
    home = os.environ.get("ZOEDGE_CACHE")
    root = Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zoedge"
    folder = root.joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise StorageError(f"{folder}: cannot make the cache folder: {e.strerror}. Set ZOEDGE_CACHE.") from e
    return folder


def file_sha256(path: Path) -> str:
    """A file's digest in hexadecimal, remembered by (device, inode, size, mtime, ctime)."""
    stat = path.stat()
    mark = f"{stat.st_dev}-{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ctime_ns}"
    note = cache_folder("digests") / hashlib.sha256(f"{path.resolve()}\0{mark}".encode()).hexdigest()[:32]
    if note.is_file() and len(known := note.read_text()) == 64:
        return known
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    with suppress(OSError):  # a note only
        note.write_text(found)
    return found


def print_progress(text: str) -> None:
    print(f"zoedge: {text}", file=sys.stderr, flush=True)


def create_once(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, made by `make(draft)` if it is not there: it appears whole or not at all, whoever else makes it."""
    if target.exists():
        return target
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as folder:
            make(draft := Path(folder) / target.name)
            for file in (draft, *draft.rglob("*")):  # or a power cut may leave a whole name of empty files
                if file.is_file():
                    with file.open("r+b") as opened:
                        os.fsync(opened.fileno())
            draft.rename(target)
    except OSError as e:
        if not target.exists():  # else another process was first: what it made is the same
            raise StorageError(
                f"{target}: cannot be made: {e.strerror or make_printable(str(e))}. Is the disk full?"
            ) from e
    return target
