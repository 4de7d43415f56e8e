"""This module compares an export on the disk with its marker, so that a finished run delivers again what is gone or damaged.

No tensor is read: files are hashed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...core import storage
from ...errors import DamagedError, StorageError, make_printable
from ...scoring.sources.file_digests import file_sha256
from .folder import CARD_FILE, CONFIG_FILE, MARKER_FILE, WEIGHTS_FILE, read_marker

EDITABLE_FILES = (CARD_FILE, CONFIG_FILE)  # files of an export that a user may have reason to edit


def file_sums(draft: Path, names: list[str]) -> dict[str, str]:
    """Return the SHA-256 of the files of an export that nobody edits, in hexadecimal, by name."""
    return {name: hash_file(draft / name) for name in names if name not in EDITABLE_FILES}


def hash_file(path: Path) -> str:
    """Return a file's SHA-256 without a memo."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_export_damage(folder: Path, fingerprint: str, steps: int) -> str:
    """Return what is wrong with an export of a log's state after `steps` steps; '': nothing.

    folder: of one adapter or model, or with a folder for each adapter of several spaces.
    """
    if not (parts := find_parts(folder)):
        return f"{folder} is gone" if not folder.exists() else f"{folder} has no {MARKER_FILE}"
    try:
        for part in parts:
            marker = read_marker(part)
            if marker.get("log") != fingerprint or marker.get("steps") != steps:
                return f"{part} is of another step or log"
            if isinstance(words := marker.get("together"), list) and len(words) != len(parts):
                return f"{folder} has {len(parts)} adapters of {len(words)}"
            for name in find_wrong_files(part, marker):
                return f"{part / make_printable(name)} is gone, or not what was written"
    except (DamagedError, OSError) as e:
        return make_printable(str(e), 200).rstrip(".")
    return ""


def find_parts(folder: Path) -> list[Path]:
    """Return the folders of an export that have a marker: its own, or those of several adapters inside it."""
    return [folder] if (folder / MARKER_FILE).exists() else sorted(p.parent for p in folder.glob(f"*/{MARKER_FILE}"))


def find_wrong_files(folder: Path, marker: dict[str, Any]) -> Iterator[str]:
    """Yield the names of an export's files that are gone, or whose bytes are not what its marker says."""
    sums = marker.get("sha256")
    for name in marker["files"]:
        path = folder / os.path.basename(name)
        if not path.is_file():
            yield name
        elif isinstance(sums, dict) and name in sums:
            if file_sha256(path) != sums[name]:
                yield name
        elif name == WEIGHTS_FILE and payload_digest(path) != marker.get("payload"):  # of an older version
            yield name


def payload_digest(path: Path) -> str:
    """Return the SHA-256 of the tensors of a safetensors file, in hexadecimal."""
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return hashlib.file_digest(file, "sha256").hexdigest()


def set_aside(folder: Path) -> Path | None:
    """Rename what stands in an export's place and is no complete export, and return its new path; None: nothing does.

    Nothing is removed: without our marker, it may be somebody else's. StorageError: the disk refuses.
    """
    if not folder.is_dir():
        return None
    with suppress(DamagedError):
        if [read_marker(part) for part in find_parts(folder)]:
            return None
    number = 1
    while (aside := folder.with_name(f"{folder.name}.damaged-{number}")).exists():
        number += 1
    try:
        storage.disk.rename(folder, aside)
    except OSError as e:
        raise StorageError(f"{folder}: cannot be renamed to {aside.name}: {e.strerror}.") from e
    return aside
