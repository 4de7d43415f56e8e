"""`zoedge cache` lists what the cache holds, and removes some of it. All of it can be made again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import StorageError, UsageError, make_printable, suggest_nearest
from .runs import count_bytes

KINDS = {  # folders of the cache, and what is in them
    "trunk": "the lower layers' outputs",
    "quantised": "a base in 4 or 8 bits",
    "models": "a packaged model",
    "texts": "a packaged text",
    "archives": "a download",
}
DIGEST_SUFFIX = ".sha256"  # of a file beside another one, which goes with it
SHORT_NAME = 12  # the digits of a hash that a name shows


@dataclass(frozen=True)
class CacheEntry:
    """A file or folder of the cache.

    Attributes:
        name: its kind and its name there, such as trunk/02839b89d597.
        what: a few words for people.
        bytes: on the disk.
        used: when it was last used or made, in seconds since 1970.
        path: where it is.
    """

    name: str
    what: str
    bytes: int
    used: float
    path: Path


def list_cache() -> list[CacheEntry]:
    """Return what the cache holds, kind by kind, the last used first."""
    from ..scoring.sources.cache import cache_folder

    entries = []
    for kind in KINDS:
        paths = [path for path in cache_folder(kind).iterdir() if not path.name.startswith(".")]
        found = (describe_entry(kind, path) for path in paths if path.suffix != DIGEST_SUFFIX)
        entries += sorted(found, key=lambda entry: (-entry.used, entry.name))
    return entries


def describe_entry(kind: str, path: Path) -> CacheEntry:
    """Return a file or folder of the cache as an entry."""
    stat = path.lstat()
    name, what = path.name, KINDS[kind]
    if kind == "trunk":
        from ..scoring.models.trunk_file import read_about

        name, about = path.stem[:SHORT_NAME], read_about(path)
        what = "damaged"
        if about:
            what = (
                f"{about.get('model')}, below block {about.get('below')}, {about.get('dtype')}, "
                f"{about.get('sequences')} sequences"
            )
    size = count_bytes(path) if path.is_dir() and not path.is_symlink() else 512 * stat.st_blocks
    return CacheEntry(f"{kind}/{name}", make_printable(what, 120), size, stat.st_mtime, path)


def find_entries(names: Sequence[str]) -> list[CacheEntry]:
    """Return the entries of some names, or of all of a kind: trunk, quantised ... UsageError: there is no such entry."""
    entries = list_cache()
    chosen: dict[Path, CacheEntry] = {}
    for name in names:
        found = [entry for entry in entries if name in (entry.name, entry.name.partition("/")[0])]
        if not found and name not in KINDS:
            hint = suggest_nearest(name, [entry.name for entry in entries]) or "."
            raise UsageError(
                f"The cache has no '{make_printable(name)}': `zoedge cache ls` lists what it has{hint} Nothing was removed."
            )
        chosen |= {entry.path: entry for entry in found}
    return list(chosen.values())


def remove_entry(entry: CacheEntry) -> int:
    """Remove an entry, and return its bytes. A process that has it open goes on with it. StorageError: the disk refuses."""
    try:
        if entry.path.is_dir() and not entry.path.is_symlink():
            shutil.rmtree(entry.path)
        else:
            for path in (entry.path, entry.path.with_name(entry.path.name + DIGEST_SUFFIX)):
                with suppress(FileNotFoundError):
                    os.unlink(path)
    except OSError as e:
        raise StorageError(f"{entry.path}: cannot be removed: {e.strerror}.") from e
    return entry.bytes
