"""This module has the cache folder, whose files are either complete or absent."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ...errors import DataError, StorageError, make_printable


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


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal.

    The cache remembers it by the file's path, device, inode, size, mtime and ctime, so that it is computed once.
    """
    stat = path.stat()
    version = f"{stat.st_dev}-{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ctime_ns}"
    note = cache_folder("digests") / hashlib.sha256(f"{path.resolve()}\0{version}".encode()).hexdigest()[:32]
    if note.is_file() and len(remembered := note.read_text()) == 64:
        return remembered
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with suppress(OSError):  # without the note, the digest is only computed again
        note.write_text(digest)
    return digest


def print_progress(text: str) -> None:
    """Write a line about something slow to standard error."""
    print(f"zoedge: {text}", file=sys.stderr, flush=True)


def has_model_files(folder: Path) -> bool:
    """Return whether a folder of the cache has all that a model needs: config.json, weights, and the tokenizer."""
    weights = any(folder.glob("*.safetensors"))
    return weights and (folder / "config.json").is_file() and (folder / "tokenizer.json").is_file()


def create_once(
    target: Path, make: Callable[[Path], None], is_whole: Callable[[Path], bool] = lambda path: True
) -> Path:
    """Return `target`, a file or folder that `make(draft)` writes if it is not there.

    It is written under another name and then renamed, so that it appears complete or not at all, even if several processes
    make it at once.

    Args:
        target: where it is to stand.
        make: what writes it, at the path that it is given.
        is_whole: says of a path whether all is there; what is there and not whole is made again.

    Raises:
        StorageError: it cannot be written. DataError: what `make` wrote is not whole.
    """
    if target.exists():
        if is_whole(target):
            return target
        print_progress(f"{target} is not whole, and is made again")
        shutil.rmtree(target, ignore_errors=True)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as folder:
            make(draft := Path(folder) / target.name)
            if not is_whole(draft):
                raise DataError(f"{target} would lack files, and was not made. Is the model's folder complete?")
            for file in (draft, *draft.rglob("*")):  # else files may be empty after a power cut
                if file.is_file():
                    with file.open("r+b") as opened:
                        os.fsync(opened.fileno())
            draft.rename(target)
    except OSError as e:
        if not target.exists():  # else another process was faster, and wrote the same
            raise StorageError(
                f"{target}: cannot be made: {e.strerror or make_printable(str(e))}. Is the disk full?"
            ) from e
    return target
