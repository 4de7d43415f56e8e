"""This module recognises the pointers that Git LFS leaves where a file was not fetched: a clone without its contents."""

from __future__ import annotations

from pathlib import Path

from ...errors import DataError

POINTER_PREFIX = b"version https://git-lfs.github.com/spec/"


def check_pointer(path: Path, where: str) -> None:
    """Refuse a file that is a Git LFS pointer. where: begins the message, and names the file. DataError: it is one."""
    with path.open("rb") as file:
        is_pointer = file.read(len(POINTER_PREFIX)) == POINTER_PREFIX
    if is_pointer:
        raise DataError(f"{where} is a Git LFS pointer, not the file itself. Fetch it: git lfs pull")
