"""This module makes the files and folders of the cache, once, and compares them with their digests whenever they are used."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ...errors import StorageError, make_printable
from .cache import DraftFolder, print_progress
from .file_digests import file_sha256

SUMS_FILE = "zoedge.sha256"  # the digests of a folder's files


def create_once(target: Path, make: Callable[[Path], None]) -> Path:
    """Return `target`, a file or folder that `make(draft)` writes if it is not there, or is not what was written.

    It is written under another name and then renamed, so that it appears complete or not at all, even if several processes
    make it at once. Its digests are stored with it, and compared here. StorageError: it cannot be written, or cannot be read
    back as it was written.
    """
    if target.exists():
        if not (damage := find_damage(target)):
            return target
        print_progress(f"{target}: {damage}: it is made again")
    try:
        with DraftFolder(target.parent) as folder:
            make(draft := Path(folder) / target.name)
            files = list_files(draft)
            sums = sums_path(draft)
            sums.write_text(encode_sums(draft, files))
            for file in (*files.values(), sums):  # else files may be empty after a power cut
                with file.open("r+b") as opened:
                    os.fsync(opened.fileno())
            if target.exists() and find_damage(target):
                target.rename(Path(folder) / "damaged")
            if sums.parent != draft:
                sums.rename(sums_path(target))
            draft.rename(target)
    except OSError as e:
        if not target.exists():  # else another process was faster, and wrote the same
            raise StorageError(
                f"{target}: cannot be made: {e.strerror or make_printable(str(e))}. Is the disk full?"
            ) from e
    if damage := find_damage(target):
        raise StorageError(f"{target}: it was written, and now {damage}. Is the disk failing?")
    return target


# -- the digests of what create_once made


def sums_path(target: Path) -> Path:
    """Return where the digests of a file or folder of the cache are: in the folder, or beside the file."""
    return target / SUMS_FILE if target.is_dir() else target.with_name(target.name + ".sha256")


def list_files(target: Path) -> dict[str, Path]:
    """Return the files of a file or folder of the cache by their relative names, without its file of digests."""
    if not target.is_dir():
        return {target.name: target}
    names = {path.relative_to(target).as_posix(): path for path in sorted(target.rglob("*")) if not path.is_dir()}
    names.pop(SUMS_FILE, None)
    return names


def encode_sums(target: Path, files: dict[str, Path]) -> str:
    """Return the text of a file of digests, which `sha256sum --check` reads too."""
    return "".join(f"{file_sha256(path)}  {name}\n" for name, path in files.items())


def find_damage(target: Path) -> str:
    """Return what is wrong with a file or folder of the cache, compared with the digests of its files; '': nothing."""
    try:
        written = sums_path(target).read_text(encoding="utf-8")
        if encode_sums(target, files := list_files(target)) == written:
            return ""
        known = {line[66:]: line[:64] for line in written.splitlines()}
        wrong = [
            n for n in sorted(files.keys() | known.keys()) if n not in files or file_sha256(files[n]) != known.get(n)
        ]
    except FileNotFoundError:
        return "it has no digests to compare it with"
    except (OSError, ValueError) as e:
        return f"it cannot be read ({make_printable(str(e))})"
    return f"{make_printable(', '.join(wrong[:3]) or SUMS_FILE)} is not what was written"
