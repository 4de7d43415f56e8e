"""This module finds files by relative paths: in the current folder, or else where the run that is used began."""

from __future__ import annotations

import os
from contextvars import ContextVar
from pathlib import Path

_places: ContextVar[tuple[Path, ...]] = ContextVar("places", default=())


def remember_place(folder: Path) -> None:
    """Let relative paths that are not in the current folder be looked for in this one too: a run began there."""
    if folder not in _places.get():
        _places.set((*_places.get(), folder))


def locate(source: str) -> str:
    """Return a path, perhaps with :NAME after it, as it is found: as it stands, or below a folder where a run began.

    What is found in neither is returned as it stands: it may be the name of something packaged, or a hub id.
    """
    head, colon, name = source.partition(":")
    path = Path(os.path.expanduser(head))
    if path.is_absolute() or is_there(path):
        return source
    place = next((place for place in _places.get() if is_there(place / path)), None)
    return source if place is None else f"{place / path}{colon}{name}"


def is_there(path: Path) -> bool:
    """Return whether a path is that of a file or folder; its last part may have stars."""
    return any(path.parent.glob(path.name)) if "*" in path.name else path.exists()
